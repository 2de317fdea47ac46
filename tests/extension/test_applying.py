"""The extension, loaded by the stand-ins as a webui loads it: what the tag does, and what it leaves behind."""

from __future__ import annotations

import pytest
import torch

from hnloader.prompt import parse_tag
from tests.support.paths import ROOT
from tests.support.standins.reference import wrap
from tests.support.standins.unets import ALL_WIDTHS
from tests.support.standins.webui import Webui
from tests.support.tiny_model import save_hypernetwork


@pytest.fixture
def running(webui: Webui) -> Webui:
    """A host with the extension and two files, started."""
    webui.install()
    save_hypernetwork(webui.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
    save_hypernetwork(webui.hypernetworks / "wash.pt", ALL_WIDTHS, seed=2)
    webui.start()
    return webui


def hooks(webui: Webui) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in webui.unet.modules())


def image(webui: Webui, prompt: str, **fields: object) -> torch.Tensor:
    return webui.generate(prompt, **fields).images[0]


def test_images_are_those_of_the_formula(running: Webui) -> None:
    plain = image(running, "a")
    tagged = image(running, "a<hypernet:ink:0.7><hypernet:wash:0.4>")
    wrap(running.unet, [(running.hypernetworks / "ink.pt", 0.7), (running.hypernetworks / "wash.pt", 0.4)])
    expected = image(running, "a")
    assert (tagged - expected).abs().max() < 1e-4 * (expected - plain).abs().max()


def test_nothing_is_left_after_a_job(running: Webui) -> None:
    before = {name: value.clone() for name, value in running.unet.state_dict().items()}
    plain = image(running, "a")
    assert not torch.equal(image(running, "a<hypernet:ink>"), plain)
    assert hooks(running) == 0
    assert torch.equal(image(running, "a"), plain)
    assert all(torch.equal(value, before[name]) for name, value in running.unet.state_dict().items())
    assert not running.reports


def test_strength_0_changes_nothing(running: Webui) -> None:
    assert torch.equal(image(running, "a<hypernet:ink:0>"), image(running, "a"))


def test_an_unknown_name_is_said_with_the_nearest_one_and_the_image_is_made(running: Webui) -> None:
    plain = image(running, "a")
    job = running.generate("a<hypernet:inkk>")
    assert torch.equal(job.images[0], plain)
    assert any("inkk" in text and "'ink'" in text for text in job.comments.splitlines())
    assert "Hypernet not applied: inkk" in job.infotexts[0]
    assert "Hypernet hashes" not in job.infotexts[0]


def test_messages_under_images_name_files_and_no_folders(running: Webui) -> None:
    (running.hypernetworks / "broken.pt").write_bytes(b"not a hypernetwork")
    said = running.generate("a<hypernet:broken><hypernet:inkk>").comments
    assert "broken.pt" in said
    assert "Searched hypernetworks (3 files)" in said
    assert str(running.folder) not in said


def test_a_broken_file_and_a_wrong_option_leave_the_others(running: Webui) -> None:
    (running.hypernetworks / "broken.pt").write_bytes(b"not a hypernetwork")
    expected = image(running, "a<hypernet:ink>")
    job = running.generate("a<hypernet:broken><hypernet:ink><hypernet:wash:1:stat=0.5>")
    assert torch.equal(job.images[0], expected)
    assert len(job.comments.splitlines()) == 2
    assert "Hypernet hashes: " in job.infotexts[0]


def test_a_window_acts_in_its_steps_only(running: Webui) -> None:
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
def test_a_job_that_ends_early_leaves_nothing(running: Webui, ending: str) -> None:
    during = []

    def end(step: int) -> None:
        during.append(hooks(running))
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
    assert hooks(running) == 0


def test_the_refiner_is_changed_too_and_both_models_are_left_clean(running: Webui) -> None:
    first = running.unet
    plain = image(running, "a", refiner="second")
    tagged = image(running, "a<hypernet:ink:1:start=0.75>", refiner="second")
    assert not torch.equal(plain, tagged)
    assert hooks(running) == 0
    assert not any(module._forward_pre_hooks for module in first.modules())


def test_the_quick_setting_adds_its_tag_once(running: Webui) -> None:
    tagged = image(running, "a<hypernet:ink:1>")
    running.shared.opts.sd_hypernetwork = "ink"
    job = running.generate("a", n_iter=2)
    assert torch.equal(job.images[0], tagged)
    assert job.infotexts[0].count("<hypernet:ink:1>") == 1
    assert hooks(running) == 0


def test_reload_registers_once_and_keeps_working(running: Webui) -> None:
    tagged = image(running, "a<hypernet:ink>")
    running.reload()
    assert torch.equal(image(running, "a<hypernet:ink>"), tagged)
    assert hooks(running) == 0
    assert not running.reports


def test_safetensors_are_in_the_hosts_list(running: Webui) -> None:
    save_hypernetwork(running.hypernetworks / "new.safetensors", ALL_WIDTHS)
    running.shared.reload_hypernetworks()
    assert running.shared.hypernetworks["new"] == str(running.hypernetworks / "new.safetensors")
    assert not torch.equal(image(running, "a<hypernet:new>"), image(running, "a"))


def test_rows_equal_tags_and_are_in_the_infotext(running: Webui) -> None:
    tagged = image(running, "a<hypernet:ink:0.5:start=0.5><hypernet:wash>")
    rows = [{"name": "ink", "strength": 0.5, "start": 0.5}, {"name": "wash"}]
    for given in (rows, "<hypernet:ink:0.5:start=0.5><hypernet:wash>"):
        job = running.generate("a", alwayson_scripts={"Hypernetworks": [given]})
        assert torch.equal(job.images[0], tagged)
        assert "Hypernet rows: " in job.infotexts[0]
        assert hooks(running) == 0
    assert not running.reports


def test_options_are_written_with_commas_or_colons_and_are_those_of_the_command_line(running: Webui) -> None:
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


def test_the_settings_are_those_that_are_read(running: Webui) -> None:
    keys = {key for key in running.shared.opts.data_labels if key.startswith("hnloader_")}
    read = "".join(path.read_text() for path in (ROOT / "extension").rglob("*.py") if path.name != "settings.py")
    assert keys
    assert all(f'"{key}"' in read for key in keys)
