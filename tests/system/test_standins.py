"""The stand-ins keep the hosts' contract, on which all tests of the extension depend."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tests.support.standins.reference import wrap
from tests.support.standins.unets import ALL_WIDTHS, make_unet
from tests.support.standins.webui import Webui, running
from tests.support.tiny_model import save_hypernetwork

RECORDER = """
    import sys
    from modules import scripts, script_callbacks, extra_networks
    log = vars(script_callbacks).setdefault("log", [])

    class Recorder(extra_networks.ExtraNetwork):
        def activate(self, p, params_list):
            log.append(("activate", [params.items for params in params_list]))

        def deactivate(self, p):
            log.append(("deactivate",))

    def before_ui():
        log.append(("before_ui", list(extra_networks.extra_network_registry)))
        extra_networks.register_extra_network(Recorder("hypernet"))

    class Always(scripts.Script):
        def title(self):
            return "Always"

        def show(self, is_img2img):
            return scripts.AlwaysVisible

        def process(self, p, *args):
            log.append(("process", args))

        def process_before_every_sampling(self, p, *args, **kwargs):
            log.append(("sampling", p.sd_model.name, p.is_hr_pass))

    log.append(("loaded", sys.path[0], scripts.basedir()))
    script_callbacks.on_before_ui(before_ui)
    script_callbacks.on_script_unloaded(lambda: log.append(("unloaded",)))
    script_callbacks.on_model_loaded(lambda model: log.append(("model", model.name)))
"""


def add_script(webui: Webui, text: str, extension: str = "one") -> Path:
    file = webui.folder / "extensions" / extension / "scripts" / "entry.py"
    file.parent.mkdir(parents=True)
    file.write_text(textwrap.dedent(text))
    return file.parents[1]


def log_of(webui: Webui) -> list[tuple]:
    """Return what the script recorded since the last call."""
    log = webui.part("script_callbacks").log
    found = list(log)
    log.clear()
    return found


@pytest.fixture
def recorded(webui: Webui) -> Webui:
    add_script(webui, RECORDER)
    webui.start()
    log_of(webui)
    return webui


def test_order_of_the_start(webui: Webui) -> None:
    root = str(add_script(webui, RECORDER))
    webui.start()
    assert log_of(webui) == [("loaded", root, root), ("model", "first"), ("before_ui", ["hypernet"])]
    assert (root in sys.path) == webui.forge  # only Forge leaves it there


def test_reload_unloads_and_empties_the_registry(recorded: Webui) -> None:
    networks = recorded.part("extra_networks")
    networks.register_extra_network(networks.ExtraNetwork("of_before"))
    recorded.reload()
    found = log_of(recorded)
    assert [entry[0] for entry in found] == ["unloaded", "loaded", "before_ui"]
    assert found[-1] == ("before_ui", ["hypernet"])
    recorded.reload()
    assert [entry[0] for entry in log_of(recorded)].count("unloaded") == 1  # callbacks were cleared in between


def test_without_a_tag_only_activate_is_called(recorded: Webui) -> None:
    recorded.generate("a cat", n_iter=2)
    assert [entry for entry in log_of(recorded) if entry[0].endswith("activate")] == [("activate", [])] * 2


def test_hires_pass_activates_the_first_prompt_s_tags_again(recorded: Webui) -> None:
    recorded.generate(["a<hypernet:x:0.5:start=0.2>", "b<hypernet:y>"], batch_size=2, enable_hr=True)
    tag = ["x", "0.5", "start=0.2"]
    assert [entry for entry in log_of(recorded) if entry[0] != "process"] == [
        ("activate", [tag]),
        ("sampling", "first", False),
        ("activate", [tag]),
        ("sampling", "first", True),
        ("deactivate",),
    ]


def test_error_in_sampling_skips_deactivate(recorded: Webui) -> None:
    def fail(step: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        recorded.generate("a<hypernet:x>", at_step=fail)
    assert ("deactivate",) not in log_of(recorded)


def test_interruption_keeps_the_image_so_far(recorded: Webui) -> None:
    steps = []

    def interrupt(step: int) -> None:
        steps.append(step)
        if step == 1:
            recorded.shared.state.interrupt()

    assert len(recorded.generate("a<hypernet:x>", at_step=interrupt, n_iter=3).images) == 1
    assert steps == [0, 1]
    assert log_of(recorded)[-1] == ("deactivate",)


def test_refiner_swaps_the_model_without_activate(recorded: Webui) -> None:
    names = []
    recorded.generate("a", refiner="second", at_step=lambda step: names.append(recorded.shared.sd_model.name))
    assert names == ["first", "first", "first", "second"]
    found = log_of(recorded)
    assert ("model", "second") in found
    assert [entry[0] for entry in found].count("activate") == 1


def test_checkpoint_in_memory_returns_without_an_event(recorded: Webui) -> None:
    recorded.sd_models.settings.keep = 1
    first = recorded.unet
    recorded.switch("second")
    recorded.switch("first")
    assert recorded.unet is first
    assert log_of(recorded) == [("model", "second")]


def test_checkpoint_can_use_the_same_modules(recorded: Webui) -> None:
    recorded.sd_models.settings.into_same_modules = True
    module, weight = recorded.unet, recorded.unet.out.weight.clone()
    recorded.switch("second")
    assert recorded.unet is module
    assert not torch.equal(module.out.weight, weight)


def test_errors_of_extensions_are_swallowed(webui: Webui) -> None:
    add_script(webui, "import nothing_of_this_name", "broken")
    add_script(
        webui,
        """
        from modules import script_callbacks
        script_callbacks.on_before_ui(lambda: 1 / 0)
        """,
        "failing",
    )
    webui.start()
    assert [type(error) for _, error in webui.reports] == [ModuleNotFoundError, ZeroDivisionError]
    assert len(webui.generate("a").images) == 1


def test_arguments_from_the_api_reach_the_script(recorded: Webui) -> None:
    recorded.generate("a", alwayson_scripts={"ALWAYS": ["<hypernet:x>"]})
    assert ("process", ("<hypernet:x>",)) in log_of(recorded)


def test_images_depend_only_on_prompt_seed_and_model(webui: Webui) -> None:
    webui.start()
    image = webui.generate("a").images[0]
    assert torch.equal(image, webui.generate("a").images[0])
    assert not torch.equal(image, webui.generate("b").images[0])
    assert torch.equal(webui.generate("a", seed=0, n_iter=2).images[1], image)
    webui.switch("second")
    assert not torch.equal(image, webui.generate("a").images[0])


def test_built_in_hypernetworks_act_only_in_a1111(webui: Webui) -> None:
    save_hypernetwork(webui.folder / "models" / "hypernetworks" / "ink.pt", ALL_WIDTHS)
    webui.start()
    plain, tagged = webui.generate("a").images[0], webui.generate("a<hypernet:ink:1>").images[0]
    assert torch.equal(plain, tagged) == webui.forge
    assert torch.equal(plain, webui.generate("a").images[0])
    webui.shared.opts.sd_hypernetwork = "ink"
    quick = webui.generate("a")
    assert torch.equal(quick.images[0], tagged)
    assert quick.infotexts[0].startswith("a<hypernet:ink:1.0>\n")
    assert not webui.reports


def test_built_in_hypernetworks_compute_the_formula(tmp_path: Path) -> None:
    with running(tmp_path / "webui") as webui:
        folder = webui.folder / "models" / "hypernetworks"
        files = [save_hypernetwork(folder / f"{name}.pt", ALL_WIDTHS, seed) for seed, name in enumerate(("ink", "oil"))]
        webui.start()
        plain = webui.generate("a").images[0]
        found = webui.generate("a<hypernet:ink:0.8><hypernet:oil:-0.5>").images[0]
        wrap(webui.unet, [(files[0], 0.8), (files[1], -0.5)])
        expected = webui.generate("a").images[0]
    assert (found - expected).norm() < 1e-4 * (expected - plain).norm()


def test_infotext_round_trip(webui: Webui) -> None:
    webui.start()
    webui.part("script_callbacks").on_infotext_pasted(lambda text, fields: fields.update(seen=True))
    processing = webui.part("processing")
    p = processing.StableDiffusionProcessing("a cat")
    p.extra_generation_params["Hypernet rows"] = "<hypernet:ink:0.5:start=0.2,end=0.8>"
    fields = webui.part("infotext_utils").paste(processing.process_images(p).infotexts[0])
    assert fields["Hypernet rows"] == "<hypernet:ink:0.5:start=0.2,end=0.8>"
    assert fields["seen"]
    old = webui.part("infotext_utils").paste("a cat\nSteps: 20, Hypernet: ink, Hypernet strength: 0.7")
    assert old["Prompt"] == "a cat<hypernet:ink:0.7>"


def test_host_leaves_nothing_in_the_process(tmp_path: Path) -> None:
    path = list(sys.path)
    with running(tmp_path / "webui", "forge") as webui:
        add_script(webui, "import sys")
        webui.start()
        assert {"modules.shared", "modules_forge"} <= set(sys.modules)
    assert sys.path == path
    assert not {"modules", "modules.shared", "modules_forge", "backend"} & set(sys.modules)


@pytest.mark.parametrize("storage", ["bfloat16", "float16", "int8"])
def test_forge_casts_weights_at_each_call(storage: str, tmp_path: Path) -> None:
    with running(tmp_path / "webui", "forge", storage) as webui:
        webui.start()
        stored, plain = webui.unet, make_unet(0)
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500.0]), torch.randn(1, 5, 24)
    found, expected = stored(*inputs[:2], context=inputs[2]), plain(*inputs[:2], context=inputs[2])
    projection = stored.input_blocks[1][1].transformer_blocks[0].attn1.to_k
    assert projection.weight.dtype == getattr(torch, storage)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 0.05 * expected.norm()


def test_lora_is_written_into_a_weight_by_its_layer_and_taken_out_again(tmp_path: Path) -> None:
    with running(tmp_path / "webui") as webui:
        webui.start()
        layer = webui.unet.input_blocks[1][1].transformer_blocks[0].attn1.to_k
        before, x = layer.weight.clone(), torch.randn(3, layer.in_features)
        plain, delta = layer(x), torch.ones_like(layer.weight)
        webui.lora.loaded_networks[:] = [webui.lora.Network("a", {layer.network_layer_name: delta})]
        assert torch.equal(layer.weight, before)
        assert torch.allclose(layer(x), plain + x @ delta.T, atol=1e-5)
        assert torch.equal(layer.weight, before + delta)
        webui.lora.loaded_networks.clear()
        assert torch.equal(layer(x), plain)
        assert torch.equal(layer.weight, before)
    assert torch.nn.Linear.forward.__module__ == "torch.nn.modules.linear"
