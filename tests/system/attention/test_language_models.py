"""Language models with hypernetworks compute the formula, with and without a cache, and are restored."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hnloader
from hnloader.network import Architecture, Hypernetwork
from tests.support.small_decoders import applied, available, make_decoder, reference
from tests.support.small_models import assert_untouched, fingerprint, make_hypernetwork, make_unet

IDS = torch.randint(3, 60, (3, 9), generator=torch.Generator().manual_seed(3))
KINDS = {"affine": Architecture(), "relu": Architecture(activation="relu"), "norm": Architecture(norm=True)}
# transformers warns of names that peft and older releases of transformers need.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
SCOPES = ("32:self:0", "32:self:1-")


def make(kind: str = "relu", scopes: tuple[str | int, ...] = SCOPES, seed: int = 1) -> Hypernetwork:
    made = Hypernetwork.new(scopes, KINDS[kind], name=f"{kind} {seed}").requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return made


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def logits(model: Any, ids: Tensor = IDS, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(ids, **kwargs).logits
        return result


def generated(model: Any, ids: Tensor = IDS, **kwargs: Any) -> Tensor:
    result: Tensor = model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, **kwargs)
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", available())
def test_each_family_computes_the_formula(name: str, kind: str) -> None:
    model, hypernetwork = make_decoder(name), make(kind)
    before, plain = fingerprint(model), logits(model)
    expected = logits(reference(model, applied(hypernetwork, 0.7)))
    assert error(plain, expected) > 0.01
    with hnloader.attach(model, hypernetwork, 0.7) as attachment:
        assert error(logits(model), expected) < 1e-5
        cached, whole = generated(model), generated(model, use_cache=False)
        assert torch.equal(cached, whole)
        plans = {row.plan for row in attachment.explain().rows}
        assert plans == ({"fold"} if kind == "affine" else {"live"})
        attachment.set_strength(0)
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), plain)
    assert_untouched(model, before)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon_new"])
def test_a_cache_gives_the_logits_of_the_whole_text(name: str) -> None:
    model = make_decoder(name)
    with hnloader.attach(model, make(), 0.7):
        whole, past, parts = logits(model), None, []
        with torch.no_grad():
            for position in range(IDS.shape[1]):
                output = model(IDS[:, position : position + 1], past_key_values=past, use_cache=True)
                past = output.past_key_values
                parts.append(output.logits)
        assert error(torch.cat(parts, 1), whole) < 1e-5


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3", "gpt_neox", "falcon"])
def test_attention_implementations(name: str, implementation: str) -> None:
    model, hypernetwork = make_decoder(name, attn_implementation=implementation), make()
    expected = logits(reference(model, applied(hypernetwork, 0.7)))
    with hnloader.attach(model, hypernetwork, 0.7):
        assert error(logits(model), expected) < 1e-5


GENERATION = {
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static"},
    "sampling": {"do_sample": True, "temperature": 0.9, "top_k": 20},
    "beams and sampling": {"num_beams": 2, "do_sample": True},
    "no cache": {"use_cache": False},
}


@pytest.mark.parametrize("options", GENERATION.values(), ids=list(GENERATION))
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_generation_is_that_of_the_reference(name: str, options: dict[str, Any]) -> None:
    model, hypernetwork = make_decoder(name), make()
    other = reference(model, applied(hypernetwork, 0.7))
    mask = torch.ones_like(IDS)
    mask[0, :4], mask[1, :2] = 0, 0  # padding on the left
    found = []
    with hnloader.attach(model, hypernetwork, 0.7):
        for each in (model, other):
            torch.manual_seed(5)
            found.append(each.generate(IDS, attention_mask=mask, max_new_tokens=10, min_new_tokens=10, **options))
    assert torch.equal(*found)
    torch.manual_seed(5)
    assert not torch.equal(
        found[0], model.generate(IDS, attention_mask=mask, max_new_tokens=10, **options)[:, : found[0].shape[1]]
    )


def test_padding_changes_no_token_of_a_row() -> None:
    model = make_decoder()
    with hnloader.attach(model, make(), 0.7):
        alone = generated(model, IDS[:1])
        padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), IDS[:1]], 1)
        mask = torch.cat([torch.zeros(1, 5, dtype=torch.long), torch.ones_like(IDS[:1])], 1)
        assert torch.equal(generated(model, padded, attention_mask=mask)[:, 5:], alone)


@pytest.mark.parametrize("kind", ["affine", "relu"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_bfloat16(name: str, kind: str) -> None:
    model, hypernetwork = make_decoder(name), make(kind)
    exact = logits(reference(model, applied(hypernetwork, 0.7)))
    half = model.to(torch.bfloat16)
    dtype = logits(half).dtype
    rounded = error(logits(reference(half, applied(hypernetwork, 0.7))).float(), exact)
    with hnloader.attach(half, hypernetwork, 0.7):
        found = logits(half)
        assert found.dtype == dtype
        assert error(found.float(), exact) < 2 * rounded + 0.02


def test_a_chain_and_strengths_by_layer(tmp_path: Path) -> None:
    model, one, two = make_decoder(), make("affine"), make("relu", (32,), 2)
    hnloader.save(two, tmp_path / "two.safetensors")

    def change(number: int, side: Any, context: Tensor) -> Tensor:
        context = applied(one, 0.5)(number, side, context)
        return applied(two, {0: 0.2, 1: 0.9, 2: 0.0}[number])(number, side, context)

    expected = logits(reference(model, change))
    strengths = {"layer.0": 0.2, "1": 0.9}
    with hnloader.attach(model, [(one, 0.5), (tmp_path / "two.safetensors", strengths)]) as attachment:
        assert error(logits(model), expected) < 1e-5
        attachment.set_strength(0.3)
        attachment.set_strength({"*": 0.5}, 0)
        attachment.set_strength({"layer": 0.2, "layer.1.self": 0.9, "layers.2.*": 0}, 1)
        assert error(logits(model), expected) < 1e-5
        assert "3 of 3" in attachment.summary()


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "falcon_multi_query"])
def test_new_strengths_of_a_fold(name: str) -> None:
    model, hypernetwork = make_decoder(name), make("affine")
    expected = {
        number: logits(reference(model, applied(hypernetwork, number))) for number in (0.7, 0.2, -1.0, 0.001, 2.0)
    }
    with hnloader.attach(model, hypernetwork) as attachment:
        for number, result in expected.items():
            attachment.set_strength(number)
            assert error(logits(model), result) < 1e-5
            assert {row.plan for row in attachment.explain().rows} == {"fold"}


@pytest.mark.parametrize("part", ["head", "inner", "copy"])
def test_every_way_to_the_decoder_has_hypernetworks(part: str) -> None:
    model, hypernetwork = make_decoder(), make()
    expected = logits(reference(model, applied(hypernetwork, 0.7)))
    hnloader.attach(model.model if part == "inner" else model, hypernetwork, 0.7)
    assert len(hnloader.attachments(model)) == len(hnloader.attachments(model.model)) == 1
    if part == "copy":
        model = copy.deepcopy(model)
    assert error(logits(model), expected) < 1e-5
    with torch.no_grad():
        assert error(model.lm_head(model.model(IDS).last_hidden_state), expected) < 1e-5
        embeds = model.get_input_embeddings()(IDS)
        assert error(model(inputs_embeds=embeds).logits, expected) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("first", [True, False])
def test_a_lora_of_peft_receives_the_changed_context(name: str, first: bool) -> None:
    peft = pytest.importorskip("peft")
    targets = {"llama": ["k_proj", "v_proj", "q_proj"], "gpt2": ["c_attn"], "gpt_neox": ["query_key_value"]}[name]
    model, hypernetwork = make_decoder(name), make()

    def with_lora(base: Any) -> Any:
        torch.manual_seed(1)
        config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False, fan_in_fan_out=name == "gpt2")
        return peft.get_peft_model(base, config).eval()

    change = applied(hypernetwork, 0.7)
    tuned = with_lora(copy.deepcopy(model))
    rows = _expected_rows(model)
    for number, module in enumerate(_projections(tuned, targets)):
        _hook(module, number, rows, change)
    expected = logits(tuned)
    attachment = hnloader.attach(model, hypernetwork, 0.7) if first else None
    found = with_lora(model)
    attachment = attachment or hnloader.attach(found, hypernetwork, 0.7)
    assert error(logits(found), expected) < 1e-5
    assert {row.plan for row in attachment.explain().rows} == {"live"}
    assert torch.equal(generated(found), generated(tuned))
    attachment.detach()


def _expected_rows(model: Any) -> Any:
    from tests.support.small_decoders import attention_layers, sides_of_rows

    return sides_of_rows(model) if len(attention_layers(model)[0][1]) == 1 else None


def _projections(model: Any, targets: list[str]) -> list[Any]:
    names = [name for name in targets if name != "q_proj"]
    layers = [module for module in model.modules() if all(name in module._modules for name in names)]
    return [[module._modules[name] for name in names] for module in layers]


def _hook(modules: list[Any], number: int, rows: Any, change: Any) -> None:
    from tests.support.small_decoders import _replaced

    if rows is not None:
        modules[0].register_forward_hook(_replaced(rows, number, change))
        return
    for module, side in zip(modules, "kv", strict=True):
        module.register_forward_pre_hook(lambda _, args, side=side: (change(number, side, args[0]),))


def test_gradients_with_and_without_checkpointing() -> None:
    found = []
    for checkpointing in (False, True):
        model, hypernetwork = make_decoder("llama"), make().requires_grad_(True)
        if checkpointing:
            model.train()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with hnloader.attach(model, hypernetwork, 1.0):
            model(IDS, labels=IDS, use_cache=False).loss.backward()
        found.append([parameter.grad.clone() for parameter in hypernetwork.parameters()])
    assert any(float(each.abs().max()) > 1e-4 for each in found[0])
    for one, two in zip(*found, strict=True):
        assert error(one, two) < 1e-4 or float((one - two).abs().max()) < 1e-6


def offload(model: Any, place: str, folder: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    if place == "disk":
        accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))
    elif place == "cpu":
        accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    else:
        layers = {f"transformer.h.{number}": "disk" if number == 1 else "cpu" for number in range(3)}
        rest = {f"transformer.{name}": "cpu" for name in ("wte", "wpe", "drop", "ln_f")}
        device_map = {**layers, **rest, "lm_head": "cpu"}
        accelerate.dispatch_model(model, device_map, main_device="cpu", offload_dir=folder, force_hooks=True)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("place", ["cpu", "disk", "device_map"])
def test_offloaded_models(place: str, first: bool, tmp_path: Path) -> None:
    model, hypernetwork = make_decoder("gpt2"), make("affine")
    expected = logits(reference(model, applied(hypernetwork, 0.7)))
    attachment = hnloader.attach(model, hypernetwork, 0.7) if first else None
    offload(model, place, tmp_path)
    attachment = attachment or hnloader.attach(model, hypernetwork, 0.7)
    assert error(logits(model), expected) < 1e-5
    assert "fold" not in {row.plan for row in attachment.explain().rows}


def test_the_cost_is_explained() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for name, kind, added in (
        ("llama", "affine", 0),
        ("llama", "relu", 2 * 2 * 32 * 64),
        ("gpt_neox", "relu", 2 * 2 * 32 * 64 + 2 * 32 * 96),
    ):
        model = make_decoder(name, attn_implementation="eager")
        with hnloader.attach(model, make(kind), 0.7) as attachment:
            step = attachment.explain().step
            assert (step.batch, step.size, step.text_tokens) == (1, None, 128)
            logits(model)
            explanation = attachment.explain()
            assert (explanation.step.batch, explanation.step.text_tokens) == (3, 9)
            found = explanation.to_dict()["totals"]["multiply_adds"]
            assert found == 3 * 9 * len(attachment.sites) * added
            assert "3 x 9 tokens" in str(explanation)
            attachment.set_strength(0)
            counter = FlopCounterMode(display=False)
            with counter, torch.no_grad():
                (model.model if name == "llama" else model.gpt_neox)(IDS)
            products = counter.get_flop_counts()["Global"]
            linear = sum(count for op, count in products.items() if str(op) in ("aten.mm", "aten.addmm"))
            assert explanation.step.multiply_adds == linear // 2


EXPERTS = ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe"]


@pytest.mark.parametrize("name", sorted(set(EXPERTS) & set(available())))
def test_the_experts_that_a_token_uses_are_counted(name: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = make_decoder(name, attn_implementation="eager")
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.model(IDS)
    products = counter.get_flop_counts()["Global"]
    linear = sum(count for op, count in products.items() if str(op) in ("aten.mm", "aten.addmm"))
    rows, tokens = IDS.shape
    with hnloader.attach(model, make(), 0.7) as attachment:
        assert attachment.explain(batch=rows, tokens=tokens).step.multiply_adds == linear // 2


# -- windows by token position


def in_window(change: Any, positions: Tensor, first: int, end: int | None) -> Any:
    """Return a change that acts at some positions [rows, tokens] only."""
    inside = ((positions >= first) & (positions < (1000 if end is None else end)))[..., None]
    return lambda number, side, context: torch.where(inside, change(number, side, context), context)


@pytest.mark.parametrize("kind", ["affine", "relu"])
@pytest.mark.parametrize(("first", "end"), [(0, None), (0, 4), (3, 6), (5, None), (9, None), (20, 30), (0, 1)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_window_changes_the_tokens_in_it(name: str, first: int, end: int | None, kind: str) -> None:
    model, hypernetwork = make_decoder(name), make(kind)
    change = in_window(applied(hypernetwork, 0.7), torch.arange(9)[None], first, end)
    expected = logits(reference(model, change))
    with hnloader.attach(model, hnloader.Application(hypernetwork, 0.7, tokens=(first, end))) as attachment:
        assert error(logits(model), expected) < 1e-5
        assert f"from token {first}" in attachment.summary()
        past, parts = None, []
        for position in range(9):
            with torch.no_grad():
                output = model(IDS[:, position : position + 1], past_key_values=past, use_cache=True)
            past = output.past_key_values
            parts.append(output.logits)
        assert error(torch.cat(parts, 1), expected) < 1e-5


@pytest.mark.parametrize(
    "options", [{}, {"cache_implementation": "static"}, {"num_beams": 2}], ids=["", "static", "beams"]
)
def test_positions_leave_out_padding(options: dict[str, Any]) -> None:
    model, application = make_decoder(), hnloader.Application(make(), 0.7, tokens=(4, 12))
    with hnloader.attach(model, application):
        alone = generated(model, IDS[:1], **options)
        padded = torch.cat([torch.zeros(1, 5, dtype=torch.long), IDS[:1]], 1)
        both = torch.cat([padded, torch.arange(14)[None] + 5])
        mask = (both != 0).long()
        assert torch.equal(generated(model, both, attention_mask=mask, **options)[:1, 5:], alone)
    if not options:
        assert not torch.equal(generated(model, IDS[:1]), alone)


def test_two_windows_of_a_chain() -> None:
    model, one, two = make_decoder(), make("affine"), make("relu", (32,), 2)
    positions = torch.arange(9)[None]

    def change(number: int, side: Any, context: Tensor) -> Tensor:
        context = in_window(applied(one, 0.5), positions, 2, 7)(number, side, context)
        return in_window(applied(two, 0.5), positions, 5, None)(number, side, context)  # type: ignore[no-any-return]

    expected = logits(reference(model, change))
    windows = [hnloader.Application(one, 0.5, tokens=(2, 7)), hnloader.Application(two, 0.5, tokens=(5, None))]
    with hnloader.attach(model, windows):
        assert error(logits(model), expected) < 1e-5
        assert torch.equal(generated(model), generated(model, use_cache=False))


@pytest.mark.parametrize("tokens", [(3, 3), (-1, 2), (1.0, 2), 5, (1,), "ab", (True, 3)])
def test_other_windows_are_refused(tokens: Any) -> None:
    with pytest.raises(ValueError, match="okens"):
        hnloader.Application(make(), tokens=tokens)


def test_a_window_of_the_other_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="tokens="):
        hnloader.attach(make_decoder(), make(), start=0.5)
    with pytest.raises(ValueError, match="start and end"):
        hnloader.attach(make_unet("sd1"), hnloader.Application(make_hypernetwork((48,)), tokens=(1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["affine", "relu"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_compiled_models(name: str, kind: str) -> None:
    torch._dynamo.reset()
    model, hypernetwork = make_decoder(name), make(kind)
    expected, weaker = (logits(reference(model, applied(hypernetwork, strength))) for strength in (0.7, 0.3))
    compiled = torch.compile(model, backend="aot_eager")
    plain = logits(compiled)
    with hnloader.attach(model, hypernetwork, 0.7) as attachment:
        assert error(logits(compiled), expected) < 1e-5
        attachment.set_strength(0.3)
        assert error(logits(compiled), weaker) < 1e-5
    assert torch.equal(logits(compiled), plain)
