"""Other changes of a model before and after attaching, each compared with the reference."""

from __future__ import annotations

import copy
import io
import pickle
import threading

import accelerate
import peft
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_submodules
from diffusers.hooks import apply_group_offloading
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
    SlicedAttnProcessor,
)

from hnloader.attention import Application, attach, attachments, find_sites
from tests.support.plan_models import in_a_call
from tests.support.small_models import (
    WIDTHS,
    assert_same,
    assert_untouched,
    fingerprint,
    make_hypernetwork,
    make_unet,
    moved,
    reference,
    run,
    unet_inputs,
)

ALL = WIDTHS["sd1"]
HN = make_hypernetwork(ALL)
APPLIED = [(HN, 0.8, 0.8)]


@pytest.fixture
def unet():
    return make_unet("sd1")


# Attention processors


class CountingProcessor:
    """A custom processor that calls to_k and to_v by name, as users write them."""

    def __init__(self, by_keyword: bool = False) -> None:
        self.by_keyword = by_keyword
        self.calls = 0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        self.calls += 1
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        key = attn.to_k(input=context) if self.by_keyword else attn.to_k(context)
        value = attn.to_v(input=context) if self.by_keyword else attn.to_v(context)
        query, key, value = (attn.head_to_batch_dim(x) for x in (attn.to_q(hidden_states), key, value))
        return attn.to_out[0](attn.batch_to_head_dim(attn.get_attention_scores(query, key) @ value))


class MemoryEfficientProcessor:
    """The order of calls of an xformers processor: contiguous heads, one fused kernel."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        query = attn.to_q(hidden_states)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(x).contiguous() for x in (query, attn.to_k(context), attn.to_v(context))
        )
        attended = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(attended)))


PROCESSORS = {
    "sdp": AttnProcessor2_0,
    "plain": AttnProcessor,
    "sliced": lambda: SlicedAttnProcessor(1),
    "custom": CountingProcessor,
    "custom by keyword": lambda: CountingProcessor(by_keyword=True),
    "memory efficient": MemoryEfficientProcessor,
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_every_attention_processor_gets_the_changed_contexts(unet, name, when):
    expected = run(reference(unet, APPLIED))
    if when == "before":
        unet.set_attn_processor(PROCESSORS[name]())
    attachment = attach(unet, HN, 0.8)
    if when == "after":
        unet.set_attn_processor(PROCESSORS[name]())
    assert_same(run(unet), expected)
    before = unet.attn_processors
    attachment.detach()
    assert unet.attn_processors == before


def test_attention_slicing(unet):
    expected = run(reference(unet, APPLIED))
    with attach(unet, HN, 0.8):
        unet.set_attention_slice("max")
        assert_same(run(unet), expected)


def test_an_ip_adapter_sees_the_image_unchanged(unet):
    for site in find_sites(unet):
        if site.kind == "cross":
            site.module.set_processor(IPAdapterAttnProcessor2_0(site.module.inner_dim, 48, num_tokens=(3,), scale=0.7))
    text, image = unet_inputs()["encoder_hidden_states"], torch.randn(2, 1, 3, 48)
    received: dict[str, torch.Tensor] = {}
    with attach(unet, HN, 0.8):
        layer = find_sites(unet)[1].module
        for name, module in (("text", layer.to_k), ("image", layer.processor.to_k_ip[0])):
            module.register_forward_pre_hook(lambda _, args, name=name: received.update({name: args[0]}))
        run(unet, encoder_hidden_states=(text, [image]))
    assert torch.equal(received["image"], image)
    assert_same(received["text"], HN.transform("k", text, 0.8))


# Fused projections


@pytest.mark.parametrize("kind", WIDTHS)
@pytest.mark.parametrize("when", ["before", "after", "after a call"])
def test_fused_projections(kind, when):
    unet, hypernetwork = make_unet(kind), make_hypernetwork(WIDTHS[kind])
    applied = [(hypernetwork, 0.8, -0.4)]
    expected = run(reference(unet, applied), kind)
    if when == "before":
        unet.fuse_qkv_projections()
        before = fingerprint(unet)
    attachment = attach(unet, Application(hypernetwork, 0.8, v=-0.5))
    if when == "after a call":
        run(unet, kind)
    if when != "before":
        unet.fuse_qkv_projections()
    assert_same(run(unet, kind), expected)
    unet.unfuse_qkv_projections()
    assert_same(run(unet, kind), expected)
    unet.fuse_qkv_projections()
    assert_same(run(unet, kind), expected)
    attachment.detach()
    if when == "before":
        assert {name: x[2:] for name, x in fingerprint(unet)["modules"].items()} == {
            name: x[2:] for name, x in before["modules"].items()
        }
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in unet.modules())
    assert_same(run(unet, kind), run(make_unet(kind), kind))


@pytest.mark.parametrize(("k", "v"), [(1, 0), (0, 1)])
def test_fused_projections_of_one_side(unet, k, v):
    """The other side comes from the fused projection."""
    expected = run(reference(unet, [(HN, 0.8 * k, 0.8 * v)]))
    unet.fuse_qkv_projections()
    with attach(unet, Application(HN, 0.8, k=k, v=v)):
        assert_same(run(unet), expected)


# LoRA


def add_lora(unet, seed=3):
    torch.manual_seed(seed)
    unet.add_adapter(
        peft.LoraConfig(r=3, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights="gaussian"),
        adapter_name=f"lora{seed}",
    )
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    unet.requires_grad_(False)


def with_lora():
    unet = make_unet("sd1")
    add_lora(unet)
    return unet


def test_lora_before_and_after_attaching(unet):
    expected = run(reference(with_lora(), APPLIED))
    plain = run(unet)
    before = fingerprint(unet)
    attachment = attach(unet, HN, 0.8)
    without = run(unet)
    add_lora(unet)
    assert_same(run(unet), expected)
    unet.unload_lora()
    assert torch.equal(run(unet), without)
    add_lora(unet)
    attachment.detach()
    assert_same(run(unet), run(with_lora()))
    unet.unload_lora()
    assert torch.equal(run(unet), plain)
    assert {name: x[1] for name, x in fingerprint(unet)["modules"].items()} == {
        name: x[1] for name, x in before["modules"].items()
    }
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in unet.modules())
    assert all("forward" not in vars(m) for m in unet.modules())

    add_lora(unet)
    before = fingerprint(unet)
    with attach(unet, HN, 0.8):
        assert_same(run(unet), expected)
    assert_untouched(unet, before)


def test_the_down_projection_of_a_lora_sees_the_changed_context(unet):
    with attach(unet, HN, 0.8):
        add_lora(unet)
        layers = [site.module.to_k for site in find_sites(unet)]
        hooked = in_a_call(unet, lambda: [bool(layer._forward_pre_hooks) for layer in layers])
        within = in_a_call(unet, lambda: [bool(layer.base_layer._forward_pre_hooks) for layer in layers])
    assert all(hooked)
    assert not any(within)


@pytest.mark.parametrize("fused", [True, False])
def test_lora_fused_into_the_weights(unet, fused):
    expected = run(reference(with_lora(), APPLIED))
    with attach(unet, HN, 0.8):
        add_lora(unet)
        if fused:
            unet.fuse_lora()
        assert_same(run(unet), expected)
        if fused:
            unet.unfuse_lora()
        assert_same(run(unet), expected)


def test_lora_and_fused_projections(unet):
    """A LoRA on the fused projection acts on the changed contexts too."""
    torch.manual_seed(5)
    unet.fuse_qkv_projections()
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_qkv", "to_kv"], init_lora_weights=False))
    unet.requires_grad_(False)
    twin = reference(make_unet("sd1"), APPLIED)
    with torch.no_grad():  # the same change in the separate projections
        for site, other in zip(find_sites(unet), find_sites(twin), strict=True):
            projections = ["to_k", "to_v"] if site.kind == "cross" else ["to_q", "to_k", "to_v"]
            layer = site.module.to_kv if site.kind == "cross" else site.module.to_qkv
            for name, delta in zip(projections, layer.get_delta_weight("default").chunk(len(projections)), strict=True):
                getattr(other.module, name).weight += delta
    with attach(unet, HN, 0.8):
        assert_same(run(unet), run(twin))


# dtype and device


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("when", ["before", "after"])
def test_other_dtypes(unet, dtype, tolerance, when):
    inputs = moved(unet_inputs(), dtype)
    expected = run(reference(unet, APPLIED))
    if when == "before":
        unet.to(dtype)
    with attach(unet, HN, 0.8):
        if when == "after":
            run(unet)
            unet.to(dtype)
        result = run(unet, **inputs)
        assert result.dtype == dtype
        assert_same(result.float(), expected, tolerance)
    assert all(parameter.dtype == torch.float32 for parameter in HN.parameters())
    HN.release()


def test_another_device(unet):
    """The meta device has no values, but all tensors must be on the same device."""
    with attach(unet, HN, 0.8) as attachment:
        run(unet)
        unet.to("meta")
        inputs = {name: value.to("meta") for name, value in unet_inputs().items()}
        inputs["timestep"] = 500
        assert run(unet, **inputs).device.type == "meta"
        assert attachment.attached
    HN.release()


# Offloading by accelerate. Weights are on the meta device between calls, so a hypernetwork that reads them at the wrong
# moment fails or gives wrong results.


@pytest.mark.parametrize("when", ["before", "after"])
def test_sequential_cpu_offload(unet, when):
    expected = run(reference(unet, APPLIED))
    if when == "before":
        cpu_offload(unet, execution_device="cpu")
        before = fingerprint(unet)
    attachment = attach(unet, HN, 0.8)
    if when == "after":
        cpu_offload(unet, execution_device="cpu")
    assert find_sites(unet)[0].module.to_k.weight.device.type == "meta"
    assert_same(run(unet), expected)
    attachment.detach()
    if when == "before":
        assert_untouched(unet, before)
    assert_same(run(unet), run(make_unet()))
    remove_hook_from_submodules(unet)
    assert_same(run(unet), run(make_unet()))


def test_removing_offloading_while_attached(unet):
    expected = run(reference(unet, APPLIED))
    cpu_offload(unet, execution_device="cpu")
    with attach(unet, HN, 0.8):
        remove_hook_from_submodules(unet)
        assert_same(run(unet), expected)
    assert_same(run(unet), run(make_unet()))


def test_fused_projections_that_are_offloaded(unet):
    expected = run(reference(unet, APPLIED))
    unet.fuse_qkv_projections()
    cpu_offload(unet, execution_device="cpu")
    with attach(unet, HN, 0.8):
        assert_same(run(unet), expected)


def test_model_cpu_offload(unet):
    expected = run(reference(unet, APPLIED))
    unet, hook = cpu_offload_with_hook(unet, execution_device="cpu")
    before = fingerprint(unet)
    with attach(unet, HN, 0.8):
        assert_same(run(unet), expected)
        hook.offload()
        assert_same(run(unet), expected)
    assert_untouched(unet, before)
    with attach(unet, HN, 0.8):
        hook.remove()
        assert_same(run(unet), expected)


def test_group_offload(unet):
    expected = run(reference(unet, APPLIED))
    with attach(unet, HN, 0.8):
        apply_group_offloading(
            unet,
            onload_device=torch.device("cpu"),
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
        )
        assert_same(run(unet), expected)
    assert_same(run(unet), run(make_unet()))


def test_the_offloading_hooks_come_from_accelerate():
    assert accelerate.hooks.AlignDevicesHook  # cpu_offload puts it on every layer


# Copies


def test_a_deep_copy_applies_the_same_independently(unet):
    before, plain = fingerprint(unet), run(unet)
    expected = run(reference(unet, APPLIED))
    attachment = attach(unet, HN, 0.8)
    twin, other = copy.deepcopy(unet), copy.deepcopy(unet)
    assert torch.equal(run(twin), run(unet))

    attachment.detach()
    assert_untouched(unet, before)
    assert_same(run(twin), expected)

    (copied,) = attachments(twin)
    assert copied is not attachment
    copied.set_strength(0.3)
    assert_same(run(twin), run(reference(unet, [(HN, 0.3, 0.3)])))
    copied.detach()
    assert torch.equal(run(twin), plain)
    assert {name: x[1:] for name, x in fingerprint(twin)["modules"].items()} == {
        name: x[1:] for name, x in before["modules"].items()
    }
    assert_same(run(other), expected)


def test_detaching_the_copy_leaves_the_original(unet):
    attachment = attach(unet, HN, 0.8)
    expected = run(unet)
    twin = copy.deepcopy(unet)
    attachments(twin)[0].detach()
    assert attachments(twin) == []
    assert attachments(unet) == [attachment]
    assert torch.equal(run(unet), expected)


def test_a_copy_follows_its_own_layers(unet):
    attach(unet, HN, 0.8)
    twin = copy.deepcopy(unet)
    add_lora(twin)
    assert_same(run(twin), run(reference(with_lora(), APPLIED)))
    assert_same(run(unet), run(reference(make_unet(), APPLIED)))


def test_pickling_an_attached_model(unet):
    expected = run(reference(unet, APPLIED))
    attach(unet, HN, 0.8, end=0.9)
    twin = pickle.loads(pickle.dumps(unet))
    assert_same(run(twin), expected)
    attachments(twin)[0].detach()
    assert_same(run(twin), run(make_unet()))


def saved_and_loaded(module):
    stream = io.BytesIO()
    torch.save(module, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "oldest pickle": lambda module: pickle.loads(pickle.dumps(module, protocol=0)),
    "torch.save": saved_and_loaded,
    "a copy of a copy": lambda module: copy.deepcopy(copy.deepcopy(module)),
    "among others": lambda module: copy.deepcopy([module, {"again": module}])[1]["again"],
}
PARTS = {
    "to_k": lambda unet: find_sites(unet)[0].module.to_k,
    "to_v of the text": lambda unet: find_sites(unet)[1].module.to_v,
    "attention": lambda unet: find_sites(unet)[0].module,
    "transformer block": lambda unet: unet.down_blocks[0].attentions[0].transformer_blocks[0],
    "mid block": lambda unet: unet.mid_block,
    "up blocks": lambda unet: unet.up_blocks,
}
STATES = {
    "unchanged": lambda unet: None,
    "fused": lambda unet: unet.fuse_qkv_projections(),
    "with a LoRA": lambda unet: add_lora(unet),
    "offloaded": lambda unet: cpu_offload(unet, execution_device="cpu"),
}


def traces(module):
    """Return the traces of an attachment in modules."""
    found = [name for name, each in module.named_modules() if "__getstate__" in vars(each)]
    for name, each in module.named_modules():
        for hooks in (each._forward_pre_hooks, each._forward_hooks):
            found += [name for hook in hooks.values() if type(hook).__module__.startswith("hnloader")]
        found += [name for value in vars(each).values() if "hnloader" in getattr(value, "__module__", "")]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("way", "activation"), [*((way, "relu") for way in WAYS), ("deepcopy", None), ("copy", None)])
def test_copied_parts_have_no_hypernetworks(unet, part, way, activation):
    shared = way == "copy" and not part.startswith("to_")  # a shallow copy has the same layers
    pristine = PARTS[part](make_unet("sd1"))
    tensors = pristine.state_dict()
    attachment = attach(unet, make_hypernetwork(ALL, activation=activation), 0.8)
    for called in (False, True):
        if called:
            run(unet)
        twin = WAYS[way](PARTS[part](unet))
        assert list(twin.state_dict()) == list(tensors)
        assert type(twin) is type(pristine)
        if not shared:
            assert traces(twin) == []
            assert sorted(vars(twin)) == sorted(vars(pristine))
            assert same_output(twin, pristine)
    attachment.detach()
    assert traces(twin) == []
    assert same_output(twin, pristine)


def same_output(one, other):
    """Compare the outputs of two modules for the same input."""
    if isinstance(one, torch.nn.ModuleList):
        return all(same_output(*pair) for pair in zip(one, other, strict=True))
    torch.manual_seed(0)
    if isinstance(one, torch.nn.Linear):
        inputs = (torch.randn(2, 5, one.in_features),)
    elif hasattr(one, "to_q"):
        inputs = (torch.randn(2, 5, one.to_q.in_features),)
    elif hasattr(one, "attn1"):
        inputs = (torch.randn(2, 5, 20), None, torch.randn(2, 7, 48))
    else:  # a block: its attention layers
        pairs = [[m for m in block.modules() if hasattr(m, "to_q")] for block in (one, other)]
        return all(same_output(*pair) for pair in zip(*pairs, strict=True) if pair[0].cross_attention_dim is None)
    with torch.no_grad():
        return torch.equal(one(*inputs), other(*inputs))


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("way", ["deepcopy", "copy"])
def test_copied_layers_that_another_program_changed_have_no_hypernetworks(state, when, way):
    shared = way == "copy" and state in ("with a LoRA", "offloaded")  # such a copy calls the original itself
    shared = way == "copy" and state in ("with a LoRA", "offloaded")  # such a copy calls the original's own parts
    unet, twin = make_unet(), make_unet()
    STATES[state](twin)
    if when == "before":
        STATES[state](unet)
    attachment = attach(unet, HN, 0.8)
    if when == "after":
        STATES[state](unet)
    for called in (False, True):
        if called:
            run(unet)
        copies = [{n: WAYS[way](m) for n, m in site.module.named_children()} for site in find_sites(unet)]
        if called:
            attachment.detach()
        elif shared:
            continue
        for site, slots in zip(find_sites(twin), copies, strict=True):
            for slot, copied in slots.items():
                if slot.startswith("to_") and slot != "to_out":
                    x = torch.randn(2, 3, site.width if slot != "to_q" else site.module.query_dim)
                    assert_same(copied(x), getattr(site.module, slot)(x), 1e-6)


def test_hooks_and_attributes_of_other_programs_are_copied(unet):
    layer = find_sites(unet)[0].module.to_k
    layer.register_forward_hook(double)
    layer.register_forward_pre_hook(halve_keywords, with_kwargs=True)
    layer.note = "mine"
    x = torch.randn(2, 3, 20)
    expected = layer(x)
    with attach(unet, HN, 0.8):
        layer.register_forward_hook(double)
        for way in ("deepcopy", "copy", "pickle"):
            twin = WAYS[way](layer)
            assert torch.equal(twin(x), 2 * expected)
            assert twin.note == "mine"
            assert len(twin._forward_hooks) == 2
            assert len(twin._forward_pre_hooks) == len(twin._forward_pre_hooks_with_kwargs) == 1


def double(module, args, output):
    return 2 * output


def halve_keywords(module, args, kwargs):
    return (args[0] / 2,), kwargs


class Stated(torch.nn.Linear):
    """A layer that defines its state."""

    def __getstate__(self):
        return {**self.__dict__, "note": "stated"}


def test_a_getstate_of_the_class_is_used(unet):
    attention = find_sites(unet)[0].module
    attention.to_k = Stated(20, 20, bias=False)
    with attach(unet, HN, 0.8):
        twin = copy.deepcopy(attention.to_k)
        assert twin.note == "stated"
        assert traces(twin) == []


def test_a_part_copied_together_with_its_model(unet):
    """Both copies are the same layer in either order, and the copied model has its attachment."""
    expected = run(reference(unet, APPLIED))
    attach(unet, HN, 0.8)
    for order in (("layer", "unet"), ("unet", "layer")):
        both = {"layer": find_sites(unet)[0].module.to_k, "unet": unet}
        for way in (copy.deepcopy, lambda what: pickle.loads(pickle.dumps(what))):
            twins = way({name: both[name] for name in order})
            twin = twins["unet"]
            assert find_sites(twin)[0].module.to_k is twins["layer"]
            assert_same(run(twin), expected)
            attachments(twin)[0].detach()
            assert traces(twin) == []
            assert torch.equal(run(twin), run(make_unet()))


def test_a_shallow_copy_of_the_model_has_its_layers_and_its_attachments(unet):
    expected = run(reference(unet, APPLIED))
    attachment = attach(unet, HN, 0.8)
    twin = copy.copy(unet)
    assert attachments(twin) == [attachment]
    assert_same(run(twin), expected)
    attachments(twin)[0].detach()
    for each in (unet, twin):
        assert attachments(each) == []
        assert torch.equal(run(each), run(make_unet()))


def test_a_copied_layer_in_another_model(unet):
    """It is an ordinary layer in the other model."""
    attachment = attach(unet, HN, 0.8)
    run(unet)
    other = make_unet()
    for site, place in zip(find_sites(unet), find_sites(other), strict=True):
        place.module.to_k = copy.deepcopy(site.module.to_k)
        place.module.to_v = copy.deepcopy(site.module.to_v)
    assert torch.equal(run(other), run(make_unet()))
    with attach(other, HN, -0.3):
        assert_same(run(other), run(reference(make_unet(), [(HN, -0.3, -0.3)])))
    attachment.detach()
    assert torch.equal(run(other), run(make_unet()))


def test_a_copy_notices_offloading_of_its_weights(unet):
    """A copy that is offloaded later has no folds."""
    affine = make_hypernetwork(ALL, activation=None)
    expected = run(reference(unet, [(affine, 0.8, 0.8)]))
    attach(unet, affine, 0.8)
    run(unet)
    twin = copy.deepcopy(unet)
    assert_same(run(twin), expected)
    twin, _ = cpu_offload_with_hook(twin, execution_device="cpu")
    assert_same(run(twin), expected)
    rows = attachments(twin)[0].explain().rows
    assert {row.plan for row in rows} == {"collapse", "cache"}
    assert any("offloaded" in row.why for row in rows)
    assert {row.plan for row in attachments(unet)[0].explain().rows} == {"fold", "cache"}


def test_saving_ignores_attachments(unet, tmp_path):
    keys = list(unet.state_dict())
    with attach(unet, HN, 0.8):
        assert list(unet.state_dict()) == keys
        assert not any(module is HN for module in unet.modules())
        unet.save_pretrained(tmp_path)
    loaded = type(unet).from_pretrained(tmp_path)
    assert torch.equal(run(loaded), run(make_unet()))
    with attach(unet, HN, 0.8):
        unet.load_state_dict(loaded.state_dict())


# Training through an attached model


def gradients(unet, checkpointing, change=None):
    unet.train()
    unet.requires_grad_(True)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    inputs = unet_inputs()
    inputs["encoder_hidden_states"].requires_grad_()
    loss = unet(**inputs).sample.square().mean()
    if change:
        change()
    loss.backward()
    found = {name: parameter.grad for name, parameter in unet.named_parameters()}
    return {**found, "context": inputs["encoder_hidden_states"].grad}


@pytest.mark.parametrize("change", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(change):
    expected = gradients(reference(make_unet(), APPLIED), checkpointing=False)
    unet = make_unet()
    with attach(unet, HN, 0.8) as attachment:
        new = (lambda: attachment.set_strength(0.1)) if change else None  # used from the next forward on
        found = gradients(unet, checkpointing=True, change=new)
    for name, gradient in expected.items():
        assert_same(found[name], gradient, 1e-4)


def test_gradients_reach_a_hypernetwork_in_training():
    hypernetwork = make_hypernetwork(ALL).requires_grad_(True)
    found = []
    for checkpointing in (False, True):
        unet = make_unet().train()
        if checkpointing:
            unet.enable_gradient_checkpointing()
        hypernetwork.zero_grad()
        with attach(unet, hypernetwork):
            unet(
                **{**unet_inputs(), "sample": unet_inputs()["sample"].requires_grad_()}
            ).sample.square().mean().backward()
        found.append([parameter.grad.clone() for parameter in hypernetwork.parameters()])
    assert all(gradient.abs().max() > 0 for gradient in found[0])
    for one, other in zip(*found, strict=True):
        assert_same(other, one)


# Threads


def test_attaching_and_detaching_from_other_threads(unet):
    before, plain = fingerprint(unet), run(unet)
    errors: list[BaseException] = []
    done = threading.Event()

    def churn(seed: int) -> None:
        try:
            hypernetwork = make_hypernetwork(ALL if seed % 2 else (48,), seed)
            for _ in range(15):
                with attach(unet, hypernetwork, 0.5) as attachment:
                    attachment.set_strength(0.2)
        except BaseException as error:
            errors.append(error)

    def generate() -> None:
        try:
            while not done.is_set():
                assert run(unet).isfinite().all()
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=churn, args=(seed,)) for seed in range(4)]
    generator = threading.Thread(target=generate)
    for thread in (generator, *workers):
        thread.start()
    for worker in workers:
        worker.join()
    done.set()
    generator.join()
    assert errors == []
    assert_untouched(unet, before)
    assert torch.equal(run(unet), plain)
