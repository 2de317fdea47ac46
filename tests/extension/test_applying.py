"""Tags in prompts, applied in a stand-in webui."""

from __future__ import annotations

import pytest
import torch

from hnloader.prompt import parse_tag
from tests.support.standins.reference import wrap
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork


def image(webui: Webui, prompt: str, **fields: object) -> torch.Tensor:
    return webui.generate(prompt, **fields).images[0]


def test_images_match_the_formula(running: Webui) -> None:
    plain = image(running, "a")
    tagged = image(running, "a<hypernet:ink:0.7><hypernet:wash:0.4>")
    wrap(running.unet, [(running.hypernetworks / "ink.pt", 0.7), (running.hypernetworks / "wash.pt", 0.4)])
    expected = image(running, "a")
    assert (tagged - expected).abs().max() < 1e-4 * (expected - plain).abs().max()


def test_nothing_is_left_after_a_job(running: Webui) -> None:
    before = {name: value.clone() for name, value in running.unet.state_dict().items()}
    plain = image(running, "a")
    assert not torch.equal(image(running, "a<hypernet:ink>"), plain)
    assert running.hooks == 0
    assert torch.equal(image(running, "a"), plain)
    assert all(torch.equal(value, before[name]) for name, value in running.unet.state_dict().items())
    assert not running.reports


def test_strength_0_changes_nothing(running: Webui) -> None:
    assert torch.equal(image(running, "a<hypernet:ink:0>"), image(running, "a"))


def test_unknown_name_becomes_a_message(running: Webui) -> None:
    plain = image(running, "a")
    job = running.generate("a<hypernet:inkk>")
    assert torch.equal(job.images[0], plain)
    assert any("inkk" in text and "'ink'" in text for text in job.comments.splitlines())
    assert "Hypernet not applied: inkk" in job.infotexts[0]
    assert "Hypernet hashes" not in job.infotexts[0]


def test_messages_contain_no_folders(running: Webui) -> None:
    (running.hypernetworks / "broken.pt").write_bytes(b"not a hypernetwork")
    comments = running.generate("a<hypernet:broken><hypernet:inkk>").comments
    assert "broken.pt" in comments
    assert "hypernetworks (3 files)" in comments
    assert str(running.folder) not in comments


def test_messages_name_the_hypernetwork_once(running: Webui) -> None:
    save_hypernetwork(running.hypernetworks / "narrow.pt", (7,), seed=1)
    for name in ("inkk", "narrow", "ink:loud"):
        (line,) = running.generate(f"a<hypernet:{name}>").comments.splitlines()
        assert line.count(f"'{name.partition(':')[0]}'") == 1, line
        assert line.count("Hypernetwork ") == 1, line


def test_failures_leave_the_other_tags(running: Webui) -> None:
    (running.hypernetworks / "broken.pt").write_bytes(b"not a hypernetwork")
    expected = image(running, "a<hypernet:ink>")
    job = running.generate("a<hypernet:broken><hypernet:ink><hypernet:wash:1:stat=0.5><hypernet:wash:1e39>")
    assert torch.equal(job.images[0], expected)
    assert len(job.comments.splitlines()) == 3
    assert "Hypernet hashes: " in job.infotexts[0]


def test_start_limits_the_steps(running: Webui) -> None:
    counts = []
    running.generate("a<hypernet:ink:1:start=0.5>", steps=4, at_step=lambda step: counts.append(step))
    whole, late, none = (
        image(running, f"a{tag}", steps=4) for tag in ("<hypernet:ink>", "<hypernet:ink:1:start=0.5>", "")
    )
    assert counts == [0, 1, 2, 3]
    assert not torch.equal(late, whole)
    assert not torch.equal(late, none)
    assert torch.equal(image(running, "a<hypernet:ink:1:start=0,end=1>", steps=4), whole)


@pytest.mark.parametrize("ending", ["interrupt", "raise"])
def test_aborted_job_leaves_nothing(running: Webui, ending: str) -> None:
    during = []

    def end(step: int) -> None:
        during.append(running.hooks)
        if step == 1 and ending == "interrupt":
            running.shared.state.interrupt()
        elif step == 1:
            raise ZeroDivisionError

    if ending == "raise":
        with pytest.raises(ZeroDivisionError):
            running.generate("a<hypernet:ink>", at_step=end)
    else:
        running.generate("a<hypernet:ink>", at_step=end)
    assert max(during) > 0
    assert running.hooks == 0


def test_refiner_is_changed_and_both_models_are_restored(running: Webui) -> None:
    first = running.unet
    plain = image(running, "a", refiner="second")
    tagged = image(running, "a<hypernet:ink:1:start=0.75>", refiner="second")
    assert not torch.equal(plain, tagged)
    assert running.hooks == 0
    assert not any(module._forward_pre_hooks for module in first.modules())


def test_quick_setting_adds_its_tag_once(running: Webui) -> None:
    tagged = image(running, "a<hypernet:ink:1>")
    running.shared.opts.sd_hypernetwork = "ink"
    job = running.generate("a", n_iter=2)
    assert torch.equal(job.images[0], tagged)
    assert job.infotexts[0].count("<hypernet:ink:1>") == 1
    assert running.hooks == 0


def test_options_equal_those_of_the_command_line(running: Webui) -> None:
    body = "ink:0.8:block=up,start=0.2,end=0.8,k=1,v=0.5"
    tagged = image(running, f"a<hypernet:{body}>", steps=5)
    assert not torch.equal(tagged, image(running, "a<hypernet:ink:0.8>", steps=5))
    with_colons = body.replace(",", ":")
    assert torch.equal(image(running, f"a<hypernet:{with_colons}>", steps=5), tagged)
    assert parse_tag(with_colons) == parse_tag(body)  # what the command line reads --hypernet by
    row = {"name": "ink", "strength": 0.8, "block": "up", "start": 0.2, "end": 0.8, "v": 0.5}
    job = running.generate("a", steps=5, alwayson_scripts={"Hypernetworks": [[row]]})
    assert torch.equal(job.images[0], tagged)
    assert 'Hypernet rows: "<hypernet:ink:0.8:block=up,start=0.2,end=0.8,v=0.5>"' in job.infotexts[0]
