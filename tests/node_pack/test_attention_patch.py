"""Hypernetworks on a model, with everything that changes attention in ComfyUI."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import hnloader
from hnloader.errors import HypernetworkError, NoMatchingSitesError
from tests.support.builders import relative_error
from tests.support.paths import GOLDENS
from tests.support.standins.comfyui_host import Host
from tests.support.standins.comfyui_model import TEXT_WIDTH, BaseModel, ModelPatcher, attend, make_model, sample, text

CASES = json.loads((GOLDENS / "manifest.json").read_text())["cases"]
FILES = {case["case"]: case for case in CASES if "file" in case}
CHAINS = {case["case"]: case for case in CASES if "chain" in case}
TOLERANCE = 1e-5
AFFINE, ACTIVATED = "linear_121.pt", "relu_121.pt"


@contextmanager
def formula(model: ModelPatcher, *files: tuple[str, float], only: str = "") -> Iterator[None]:
    """Apply files by the formula in pre-hooks of the projections."""
    chain = [(hnloader.load(GOLDENS / name), strength) for name, strength in files]
    handles = []
    for name, module in model.model.named_modules():
        side = {"to_k": "k", "to_v": "v"}.get(name.rpartition(".")[2])
        if side is not None and only in name:

            def change(module: nn.Module, args: tuple[Tensor], side: Any = side) -> tuple[Tensor]:
                context = args[0]
                for hypernetwork, strength in chain:
                    context = hypernetwork.transform(side, context, strength)
                return (context,)

            handles.append(module.register_forward_pre_hook(change))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def assert_same(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE) -> None:
    assert relative_error(found, wanted) < tolerance


def patched(comfyui: Host, files: list[tuple[str, float]], x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return k and v of a chain's patch for a context, outside of a UNet."""
    parts = comfyui.part("attention_patch")
    files_part = comfyui.part("hypernetwork_files")
    settings = [parts.Setting(files_part.load(files_part.path_of(name)), strength) for name, strength in files]
    chain = parts.Chain(settings)
    place = ("input", 1, 0, kind)
    call = parts._Call([(setting, {place: setting.strength}) for setting in settings], None)
    options = {"block": ("input", 1), "block_index": 0, "hnloader_calls": {chain: call}}
    q, k, v = parts.Patch(chain, kind)(x, x, x, options)
    assert q is x
    plain = comfyui.part("folded_context").plain
    return plain(k), plain(v)


@pytest.mark.parametrize("kind", ["self", "cross"])
@pytest.mark.parametrize("name", FILES)
def test_patches_equal_the_original_programs(name: str, kind: str, comfyui: Host) -> None:
    golden = load_file(GOLDENS / FILES[name]["golden"])
    compared = 0
    for key, expected in golden.items():
        if key.startswith("x."):
            continue
        side, width, strength = key.split(".", 2)
        with torch.inference_mode():
            found = patched(comfyui, [(FILES[name]["file"], float(strength))], golden[f"x.{width}"].float(), kind)
        assert_same(found["kv".index(side)], expected)
        compared += 1
    assert compared >= 4


@pytest.mark.parametrize("name", CHAINS)
def test_chains_equal_the_original_programs(name: str, comfyui: Host) -> None:
    golden = load_file(GOLDENS / CHAINS[name]["golden"])
    chain = [
        (f"{part}.pt", strength)
        for part, strength in zip(CHAINS[name]["chain"], CHAINS[name]["multipliers"], strict=True)
    ]
    for width in CHAINS[name]["dims"]:
        with torch.inference_mode():
            k, v = patched(comfyui, chain, golden[f"x.{width}"].float(), "self")
        assert_same(k, golden[f"k.{width}"])
        assert_same(v, golden[f"v.{width}"])


@pytest.mark.parametrize("file", [AFFINE, ACTIVATED, "hns_nested.hns", "leakyrelu_dropout_ln.pt"])
def test_images_equal_the_formula(file: str, comfyui: Host) -> None:
    model = make_model()
    plain = sample(model)
    found = sample(comfyui.load(model, file, 0.7))
    with formula(model, (file, 0.7)):
        wanted = sample(model)
    assert relative_error(wanted, plain) > 1e-3
    assert_same(found, wanted)
    assert torch.equal(sample(model), plain)


@pytest.mark.parametrize("order", [(AFFINE, ACTIVATED), (ACTIVATED, AFFINE), (AFFINE, "bf16_linear.pt")])
def test_nodes_act_in_their_order(order: tuple[str, str], comfyui: Host) -> None:
    model = make_model()
    chained = comfyui.load(comfyui.load(model, order[0], 0.8), order[1], -0.4)
    assert len(chained.model_options["transformer_options"]["patches"]["attn1_patch"]) == 1  # one chain
    found = sample(chained)
    with formula(model, (order[0], 0.8), (order[1], -0.4)):
        assert_same(found, sample(model))


@pytest.mark.parametrize("file", [AFFINE, ACTIVATED])
@pytest.mark.parametrize("first", [True, False])
def test_patches_of_other_nodes_keep_their_place(file: str, first: bool, comfyui: Host) -> None:
    """As ComfyUI's own loader of hypernetworks: a patch that changes k and v."""
    other = hnloader.load(GOLDENS / "mish_1221_ln.pt")

    def built_in(q: Tensor, k: Tensor, v: Tensor, options: dict) -> tuple[Tensor, Tensor, Tensor]:
        return q, other.transform("k", k + 0, 0.5), other.transform("v", v + 0, 0.5)

    model = make_model()
    changed = model.clone()
    if first:
        changed = comfyui.load(changed, file, 0.7)
    for name in ("attn1_patch", "attn2_patch"):
        changed.set_model_patch(built_in, name)
    if not first:
        changed = comfyui.load(changed, file, 0.7)
    found = sample(changed)
    chain = [(file, 0.7), ("mish_1221_ln.pt", 0.5)]
    with formula(model, *(chain if first else reversed(chain))):
        assert_same(found, sample(model))


@pytest.mark.parametrize("file", [AFFINE, ACTIVATED])
def test_replaced_attention_receives_projected_keys(file: str, comfyui: Host) -> None:
    def adapter(q: Tensor, k: Tensor, v: Tensor, options: dict) -> Tensor:
        extra = torch.ones_like(k[:, :2]) * 0.1
        return attend(q, k, v) + attend(q, extra, extra)

    model = make_model()
    for name in ("attn1", "attn2"):
        model.set_replacement(adapter, name, ("input", 1))
    with formula(model, (file, 0.7)):
        wanted = sample(model)
    assert_same(sample(comfyui.load(model, file, 0.7)), wanted)


def test_the_options_are_found_behind_those_of_a_controlnet(comfyui: Host) -> None:
    model = make_model()
    model.model.control = {"input": [], "middle": [], "output": []}
    found = sample(comfyui.load(model, ACTIVATED, 0.7))
    with formula(model, (ACTIVATED, 0.7)):
        assert_same(found, sample(model))
    assert model.model.control == {"input": [], "middle": [], "output": []}


@pytest.mark.parametrize("file", [AFFINE, ACTIVATED])
def test_changed_weights_are_seen_between_runs(file: str, comfyui: Host) -> None:
    """As a LoRA: ComfyUI puts new weights into the layers, or changes them in place."""
    model = make_model()
    changed = comfyui.load(model, file, 0.7)
    sample(changed)
    layer = model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_k
    for change in (
        lambda: setattr(layer, "weight", nn.Parameter(layer.weight * 1.5, False)),
        lambda: layer.weight.mul_(2),
    ):
        change()
        found = sample(changed)
        with formula(model, (file, 0.7)):
            assert_same(found, sample(model))


def test_weights_that_a_hook_changes_during_a_run_are_seen(comfyui: Host) -> None:
    model = make_model()
    layer = model.model.diffusion_model.input_blocks[1][1].transformer_blocks[0].attn1.to_k
    changed = comfyui.load(model, AFFINE, 0.7)
    changed.hook_backup["to_k"] = layer.weight.clone()

    def change_in_place(executor: Any, *args: Any, **kwargs: Any) -> Any:
        layer.weight.data.mul_(1.1)
        return executor(*args, **kwargs)

    def run(patcher: ModelPatcher) -> Tensor:
        layer.weight.data.copy_(changed.hook_backup["to_k"])
        patcher = patcher.clone()
        patcher.add_wrapper_with_key("apply_model", "hook", change_in_place)
        return sample(patcher)

    with formula(model, (AFFINE, 0.7)):
        wanted = run(model)
    assert_same(run(changed), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("file", [AFFINE, ACTIVATED])
def test_half_precision_is_as_exact_as_the_formula(dtype: torch.dtype, file: str, comfyui: Host) -> None:
    exact, model = make_model(), make_model(dtype=dtype)
    exact.model.load_state_dict(model.model.state_dict())
    with formula(exact, (file, 1.0)), formula(model, (file, 1.0)):
        wanted = sample(exact)
        by_formula = relative_error(sample(model), wanted)
    assert 0 < relative_error(sample(comfyui.load(model, file)), wanted) < 2 * by_formula


@pytest.mark.parametrize("file", [AFFINE, ACTIVATED])
@pytest.mark.parametrize(
    ("blocks", "only"),
    [
        ("up", "output_blocks"),
        ("mid", "middle_block"),
        ("cross", "attn2"),
        ("down.1", "input_blocks.3"),
        ("block=self", "attn1"),
    ],
)
def test_blocks(blocks: str, only: str, file: str, comfyui: Host) -> None:
    model = make_model()
    found = sample(comfyui.load(model, file, 0.7, blocks=blocks))
    with formula(model, (file, 0.7), only=only):
        assert_same(found, sample(model))


def test_factors_of_blocks_and_sides(comfyui: Host) -> None:
    model = make_model()
    found = sample(comfyui.load(model, AFFINE, 0.8, blocks="*+mid@0.5", k=0.5, v=0))
    with formula(model, (AFFINE, 0.4), only="put_blocks."), formula(model, (AFFINE, 0.2), only="middle_block"):
        both = sample(model)
    with_v = sample(comfyui.load(model, AFFINE, 0.4, blocks="*+mid@0.5"))
    assert_same(with_v, both)
    assert_same(found, sample(comfyui.load(model, AFFINE, 0.4, blocks="*+mid@0.5", v=0)))
    assert relative_error(found, with_v) > 1e-4


@pytest.mark.parametrize("file", [AFFINE, ACTIVATED])
def test_windows(file: str, comfyui: Host) -> None:
    """The noise of the steps is 10, 6, 3 and 1 of a schedule from 12 to 0."""
    model = make_model()
    whole = sample(comfyui.load(model, file))
    plain = sample(model)
    half = sample(comfyui.load(model, file, start=0.5, window="steps"))
    assert_same(sample(comfyui.load(model, file, start=0.6, end=0.99)), half)  # percent: noise 4.8 to 0.12
    for other in (whole, plain):
        assert relative_error(half, other) > 1e-4
    assert torch.equal(sample(comfyui.load(model, file, end=0.2, window="steps")), plain)  # less than a step


@pytest.mark.parametrize("file", [AFFINE, ACTIVATED])
def test_hook_of_one_conditioning(file: str, comfyui: Host) -> None:
    model = make_model()
    (hooks,) = comfyui.node("CreateHookHypernetwork").create(file, 0.7)
    with formula(model, (file, 0.7)):
        wanted = sample(model)
    assert_same(sample(model, (text(1), hooks)), wanted)
    both = sample(model, (text(1), hooks), (text(2, tokens=14), None))
    swapped = sample(model, (text(1), None), (text(2, tokens=14), hooks))
    assert (
        min(
            relative_error(each, sample(model, (text(1), None), (text(2, tokens=14), None))) for each in (both, swapped)
        )
        > 1e-4
    )
    assert relative_error(both, swapped) > 1e-4


@pytest.mark.parametrize("file", [AFFINE, ACTIVATED])
def test_hook_and_node_together(file: str, comfyui: Host) -> None:
    model = make_model()
    (first,) = comfyui.node("CreateHookHypernetwork").create("bf16_linear.pt", 0.5)
    (hooks,) = comfyui.node("CreateHookHypernetwork").create("linear_ln.pt", 0.3, prev_hooks=first)
    assert (len(first.hooks), len(hooks.hooks)) == (1, 2)
    found = sample(comfyui.load(model, file, 0.7), (text(1), first))
    with formula(model, ("bf16_linear.pt", 0.5), (file, 0.7)):
        assert_same(found, sample(model))


def test_a_run_leaves_the_model_and_the_memory_unchanged(comfyui: Host) -> None:
    model = make_model()
    before = copy.deepcopy(model.model.state_dict())
    changed = comfyui.load(comfyui.load(model, AFFINE), ACTIVATED)
    clones = [changed]
    for _ in range(10):
        clones.append(clones[-1].clone())
    patches = {id(each.model_options["transformer_options"]["patches"]["attn1_patch"][0]) for each in clones}
    assert len(patches) == 1
    sample(clones[-1])
    folded = comfyui.part("folded_context")
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) in (folded.KeptFolds, folded.FoldedContext)]
    assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.model.modules())
    assert not model.wrappers and model.model_options == {"transformer_options": {}}


def test_an_interrupted_run_frees_its_folds(comfyui: Host) -> None:
    def interrupt(executor: Any, *args: Any, **kwargs: Any) -> Any:
        executor(*args, **kwargs)
        raise KeyboardInterrupt

    changed = comfyui.load(make_model(), AFFINE)
    changed.add_wrapper_with_key("apply_model", "stop", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sample(changed)
    folded = comfyui.part("folded_context")
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is folded.KeptFolds]


def test_affine_files_change_no_tokens_and_fold_once(comfyui: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    folded = comfyui.part("folded_context")
    counts = {"fold": 0, "changed": 0}

    def counted(name: str, function: Any) -> Any:
        def run(*args: Any) -> Any:
            counts[name] += 1
            return function(*args)

        return run

    monkeypatch.setattr(folded, "fold", counted("fold", folded.fold))
    monkeypatch.setattr(folded.FoldedContext, "changed", counted("changed", folded.FoldedContext.changed))
    sample(comfyui.load(make_model(), AFFINE))
    assert counts == {"fold": 2 * 6, "changed": 0}  # k and v of 6 self-attention layers, once in 4 steps


def test_little_memory_keeps_no_folds(comfyui: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "free", 1 << 30)
    model = make_model()
    with formula(model, (AFFINE, 0.7)):
        wanted = sample(model)
    assert_same(sample(comfyui.load(model, AFFINE, 0.7)), wanted)


def test_a_text_is_changed_once_in_each_step(comfyui: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    transform = hnloader.Hypernetwork.transform

    def counted(self: Any, side: Any, context: Tensor, strength: float) -> Tensor:
        widths.append(context.shape[1])
        return transform(self, side, context, strength)

    monkeypatch.setattr(hnloader.Hypernetwork, "transform", counted)
    sample(comfyui.load(make_model(), ACTIVATED, blocks="cross"), (text(1, tokens=5), None))
    assert widths == [5] * 2 * 4  # k and v in 4 steps


@pytest.mark.parametrize("name", ["Flux", "SD3", "WAN21_T2V"])
def test_models_without_these_layers_are_refused_by_name(name: str, comfyui: Host) -> None:
    model = ModelPatcher(BaseModel(nn.Sequential(nn.Linear(4, 4)), name))
    with pytest.raises(NoMatchingSitesError) as raised:
        comfyui.load(model, AFFINE)
    assert name in str(raised.value) and "SDXL" in str(raised.value)


def test_video_models_are_refused(comfyui: Host) -> None:
    with pytest.raises(NoMatchingSitesError, match="SVD_img2vid"):
        comfyui.load(make_model("SVD_img2vid", use_temporal_attention=True), AFFINE)


def test_other_widths_are_refused(comfyui: Host) -> None:
    hnloader.save(
        hnloader.Hypernetwork.new((2048,), hnloader.Architecture()).requires_grad_(False), comfyui.folder / "xl.pt"
    )
    with pytest.raises(NoMatchingSitesError) as raised:
        comfyui.load(make_model(), "xl.pt")
    assert "2048" in str(raised.value) and str(TEXT_WIDTH) in str(raised.value)


def test_some_missing_widths_are_a_warning_on_the_page(comfyui: Host, caplog: pytest.LogCaptureFixture) -> None:
    widths = (32, 2048)
    hnloader.save(
        hnloader.Hypernetwork.new(widths, hnloader.Architecture()).requires_grad_(False), comfyui.folder / "part.pt"
    )
    comfyui.load(make_model(), "part.pt", node="7")
    ((event, data),) = comfyui.server.events
    assert event == "hnloader.warning" and data["node"] == "7"
    assert "2048" in data["text"] and data["text"] in caplog.text


def test_a_call_that_bypasses_comfyui_is_an_error_instead_of_no_effect(comfyui: Host) -> None:
    model = comfyui.load(make_model(), AFFINE)
    options = dict(model.model_options["transformer_options"])
    with pytest.raises(HypernetworkError, match="apply_model"):
        model.model.diffusion_model(torch.zeros(1, 4, 4, 4), text(1), options)


def test_unknown_blocks_are_refused(comfyui: Host) -> None:
    with pytest.raises(NoMatchingSitesError, match="upp"):
        comfyui.load(make_model(), AFFINE, blocks="upp")


def test_a_hook_on_another_model_is_refused_when_it_runs(comfyui: Host) -> None:
    (hooks,) = comfyui.node("CreateHookHypernetwork").create(AFFINE, 0.7)
    with pytest.raises(NoMatchingSitesError, match="SVD_img2vid"):
        sample(make_model("SVD_img2vid", use_temporal_attention=True), (text(1), hooks))


def test_a_hook_with_other_widths_is_refused_or_reported_when_it_runs(
    comfyui: Host, caplog: pytest.LogCaptureFixture
) -> None:
    for name, widths in (("xl.pt", (2048,)), ("part.pt", (32, 2048))):
        made = hnloader.Hypernetwork.new(widths, hnloader.Architecture()).requires_grad_(False)
        hnloader.save(made, comfyui.folder / name)
    (hooks,) = comfyui.node("CreateHookHypernetwork").create("xl.pt", 0.7)
    with pytest.raises(NoMatchingSitesError, match="2048"):
        sample(make_model(), (text(1), hooks))
    (hooks,) = comfyui.node("CreateHookHypernetwork").create("part.pt", 0.7)
    sample(make_model(), (text(1), hooks))
    assert len([record for record in caplog.records if "2048" in record.getMessage()]) == 1
