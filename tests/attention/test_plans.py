"""Every plan against the exact path, whatever happens to the model, the contexts and the strengths meanwhile."""

from __future__ import annotations

import copy
import gc
import threading

import peft
import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_submodules
from diffusers.hooks import apply_group_offloading
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hnloader.activations import ACTIVATIONS
from hnloader.attention import Application, attach, attachments, find_sites
from hnloader.attention.counting import count_step
from hnloader.attention.folding import MOST_CHANGES
from hnloader.attention.injector import injector_of
from hnloader.attention.stages import CachedStages
from hnloader.errors import HypernetworkError
from hnloader.network import Architecture, Hypernetwork
from tests.support.small_models import (
    WIDTHS,
    assert_same,
    assert_untouched,
    fingerprint,
    make_hypernetwork,
    make_small_unet,
    make_unet,
    moved,
    reference,
    run,
    unet_inputs,
)

ALL = WIDTHS["sd1"]
RELU = make_hypernetwork(ALL)


def make(architecture: Architecture, seed: int = 0, widths=ALL, name: str = "") -> Hypernetwork:
    """Random and strong enough to be seen."""
    torch.manual_seed(seed + 200)
    hypernetwork = Hypernetwork.new(tuple(widths), architecture, name=name or f"{architecture}")
    with torch.no_grad():
        for parameter in hypernetwork.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim > 1 else 0.2))
    return hypernetwork.requires_grad_(False)


AFFINE = make(Architecture(), name="affine")
KINDS = {
    "affine": AFFINE,
    "narrow affine": make(Architecture((1, 0.25, 1))),
    "deep affine": make(Architecture((1, 2, 2, 1), dropout=(0, 0.3, 0.3, 0))),
    "relu": RELU,
    "norm": make(Architecture((1, 2, 1), norm=True)),
    "norm and dropout": make(Architecture((1, 2, 2, 1), "mish", norm=True, dropout=(0, 0.3, 0.3, 0))),
    "activated output": make(Architecture((1, 1.5, 1), "leakyrelu", activate_output=True)),
    "prelu": make(Architecture((1, 2, 1), "prelu")),
    "tanh": make(Architecture((1, 2, 1), "tanh")),
    "residual": make(Architecture((1, 2, 1), "relu", residual="linear")),
    "affine residual": make(Architecture((1, 2, 1), residual="interpolate")),
}


@pytest.fixture
def unet():
    return make_unet("sd1")


def exactly(hypernetworks, *, unet=None, strength=1.0, **inputs):
    """What the exact path gives on a fresh model."""
    unet = unet or make_unet("sd1")
    with attach(unet, hypernetworks, strength, exact=True) as attachment:
        assert {row.plan for row in attachment.explain().rows} <= {"exact", "none"}
        return run(unet, **inputs)


def plans(attachment, kind=None):
    return {row.plan for row in attachment.explain().rows if kind in (None, row.kind)}


def folds(unet):
    return [p.fold for p in injector_of(unet)._projections() if p.fold is not None]


# Which plan is chosen, and that it gives the same


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("strength", [1.0, -0.4])
def test_every_architecture_gives_what_the_exact_path_gives(unet, name, strength):
    before, plain = fingerprint(unet), run(unet)
    expected = exactly(KINDS[name], strength=strength)
    assert (expected - plain).abs().max() > 1e-3
    with attach(unet, KINDS[name], strength) as attachment:
        assert_same(run(unet), expected)
        assert plans(attachment, "cross") == {"cache"}
        assert plans(attachment, "self") == {"fold" if "affine" in name else "live"}
    with attach(unet, KINDS[name], strength, fold=False) as attachment:
        assert_same(run(unet), expected)
        assert folds(unet) == []
        assert plans(attachment, "self") == {
            "live" if name == "narrow affine" else "collapse" if "affine" in name else "live"
        }
    assert_untouched(unet, before)
    assert torch.equal(run(unet), plain)


@pytest.mark.parametrize("kind", WIDTHS)
def test_every_family(kind):
    hypernetwork = make(Architecture(), widths=WIDTHS[kind])
    for fused in (False, True):
        unet = make_unet(kind)
        with attach(unet, hypernetwork, 0.7, exact=True):
            expected = run(unet, kind)
        if fused:
            unet.fuse_qkv_projections()
        with attach(unet, hypernetwork, 0.7) as attachment:
            assert_same(run(unet, kind), expected)
            assert plans(attachment, "self") == {"fold"}


CHAINS = {
    "affine": ["affine", "deep affine", "narrow affine"],
    "affine after relu": ["relu", "affine", "deep affine"],
    "affine before relu": ["affine", "deep affine", "relu"],
    "affine around relu": ["affine", "relu", "affine", "deep affine"],
    "relus": ["relu", "tanh", "norm"],
    "residuals": ["residual", "affine residual"],
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("fold", [True, False])
def test_chains(unet, name, fold):
    chain = [(KINDS[each], 0.3 + 0.1 * index) for index, each in enumerate(CHAINS[name])]
    expected = exactly(chain)
    with attach(unet, chain, fold=fold):
        assert_same(run(unet), expected)


def test_an_affine_chain_becomes_one_matrix(unet):
    with attach(unet, [AFFINE] * 5, 0.2) as attachment:
        explanation = attachment.explain(batch=2, size=16)
        assert explanation.total("multiply_adds") == 0
        five = explanation.total("kept_bytes")
    with attach(unet, AFFINE, 0.2) as attachment:
        assert attachment.explain().total("kept_bytes") == five


def test_each_attachment_has_its_own_options(unet):
    expected = exactly([(AFFINE, 0.5), (KINDS["deep affine"], 0.4)])
    with attach(unet, AFFINE, 0.5, fold=False) as host:
        assert folds(unet) == []
        with attach(unet, KINDS["deep affine"], 0.4):
            assert_same(run(unet), expected)
            assert folds(unet) == []  # the stretch belongs to both
        with attach(unet, KINDS["deep affine"], 0.4, exact=True):
            assert_same(run(unet), expected)
            assert plans(host) == {"exact"}


def test_one_side_alone(unet):
    for k, v in ((1, 0), (0, 1), (0.5, -0.3)):
        application = Application(AFFINE, 0.8, k=k, v=v)
        expected = exactly(application)
        with attach(unet, application):
            assert_same(run(unet), expected)
        unet.fuse_qkv_projections()
        with attach(unet, application):
            assert_same(run(unet), expected)
        unet.unfuse_qkv_projections()


def test_strengths_by_block(unet):
    strength = {"up": 1.0, "mid": 0.5, "cross": 0.3}
    expected = exactly(AFFINE, strength=strength)
    with attach(unet, AFFINE, strength) as attachment:
        assert_same(run(unet), expected)
        assert "none" in plans(attachment, "self")


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(
    structure=st.lists(st.sampled_from([0.5, 1, 1.3, 2]), min_size=1, max_size=3),
    activation=st.sampled_from([None, "relu", "swish", "gelu", "elu", "softsign", "rrelu"]),
    norm=st.booleans(),
    activate_output=st.booleans(),
    strength=st.floats(-2, 2).filter(lambda s: abs(s) > 1e-3),
    batch=st.integers(1, 3),
)
def test_any_side(structure, activation, norm, activate_output, strength, batch):
    """By itself, on contexts of several blocks of rows, through an attention layer of its own."""
    architecture = Architecture((1, *structure, 1), activation, norm, (0,) * (len(structure) + 2), activate_output)
    hypernetwork = make(architecture, widths=(20,))
    unet = make_small_unet()
    context = torch.randn(batch, 700, 20, generator=torch.Generator().manual_seed(1))
    layer = find_sites(unet)[0].module
    for projection, side in ((layer.to_k, "k"), (layer.to_v, "v")):
        with torch.no_grad():
            expected = projection(hypernetwork.transform(side, context, strength))
            for fold in (True, False):
                with attach(unet, hypernetwork, strength, fold=fold):
                    assert_same(projection(context), expected)


# Activations that look at more than one value, which blocks of rows would hide from them


def formula(hypernetwork: Hypernetwork, side: str, context: torch.Tensor, strength: float) -> torch.Tensor:
    """x + strength * mlp(x) with torch's own modules by the names of the file, on contexts as they are."""
    architecture = hypernetwork.architecture
    assert architecture.residual is None
    classes = {name.lower(): found for name, found in vars(nn.modules.activation).items() if isinstance(found, type)}
    classes["swish"] = nn.Hardswish  # as the webui has it
    x = context.double()
    for module in hypernetwork.side(context.shape[-1], side).linear:
        if isinstance(module, nn.Linear):
            x = nn.functional.linear(x, module.weight.double(), module.bias.double())
        elif isinstance(module, nn.LayerNorm):
            x = nn.functional.layer_norm(x, x.shape[-1:], module.weight.double(), module.bias.double())
        elif not isinstance(module, nn.Dropout):
            activation = classes[architecture.activation]().eval()
            activation.load_state_dict(module.state_dict())
            x = activation.double()(x)
    return (context.double() + strength * x).to(context.dtype)


def by_formula(unet, chain, **inputs):
    """What plain hooks with the formula give."""
    handles = []
    for site in find_sites(unet):
        for side in "kv":

            def before(_, args, width=site.width, side=side):
                context = args[0]
                for hypernetwork, strength in chain:
                    if width in hypernetwork.widths:
                        context = formula(hypernetwork, side, context, strength)
                return (context,)

            handles.append(getattr(site.module, f"to_{side}").register_forward_pre_hook(before))
    result = run(unet, **inputs)
    for handle in handles:
        handle.remove()
    return result


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize(
    ("name", "fused"),
    [
        *((name, False) for name in sorted(ACTIVATIONS)),
        *((name, True) for name in ("softmax", "softmin", "logsoftmax", "softmax2d", "prelu", "rrelu", "gelu")),
    ],
)
def test_every_activation_gives_what_the_formula_gives(unet, name, fused):
    plain = make(Architecture((1, 2, 1), name))
    rich = make(Architecture((1, 0.5, 1.5, 1), name, norm=True, activate_output=True, dropout=(0, 0.3, 0, 0)), seed=1)
    chains = [(plain, 1.0)], [(rich, -0.6)], [(AFFINE, 0.3), (plain, 0.4), (KINDS["deep affine"], 0.2)]
    for batch, chain in enumerate(chains, 1):
        inputs = unet_inputs(batch=batch)
        expected = by_formula(unet, chain, **inputs)
        if fused:
            unet.fuse_qkv_projections()
        for options in ({}, {"fold": False}, {"exact": True}):
            with attach(unet, chain, **options):
                assert_same(run(unet, **inputs), expected)
        if fused:
            unet.unfuse_qkv_projections()


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("shape", [(5, 20), (2, 3, 20), (3, 700, 20), (2, 3, 4, 20)])
@pytest.mark.parametrize("residual", [None, "linear", "interpolate"])
def test_every_activation_in_every_dimension(name, shape, residual):
    hypernetwork = make(Architecture((1, 2, 1), name, activate_output=True, residual=residual), widths=(20,))
    unet = make_small_unet()
    context = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    layer = find_sites(unet)[0].module
    for projection, side in ((layer.to_k, "k"), (layer.to_v, "v")):
        try:
            expected = projection(hypernetwork.transform(side, context, 0.7))
        except ValueError:  # softmax2d has no meaning here
            assert name == "softmax2d" and len(shape) == 2
            continue
        with attach(unet, hypernetwork, 0.7):
            assert_same(projection(context), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_softmax_in_half_precision_is_what_the_exact_path_gives(unet, dtype):
    unet.to(dtype)
    hypernetwork = make(Architecture((1, 2, 1), "softmax"))
    inputs = moved(unet_inputs(), dtype)
    expected = exactly(hypernetwork, unet=unet, **inputs)
    with attach(unet, hypernetwork):
        assert torch.equal(run(unet, **inputs), expected)


class Reversing(nn.ReLU):
    """An activation of one's own, which looks at all the tokens."""

    def forward(self, x):
        return super().forward(x).flip(-2)


@pytest.mark.parametrize(
    "module",
    [
        nn.PReLU(40),
        nn.Softmax(dim=-2),
        nn.Sequential(nn.GLU(), nn.Linear(20, 40)),
        Reversing(),
        nn.BatchNorm1d(7).requires_grad_(False),
        nn.LayerNorm((7, 40)).requires_grad_(False),
        nn.Linear(40, 40, bias=False),
    ],
    ids=lambda module: type(module).__name__,
)
def test_modules_that_somebody_has_put_in(module):
    """A network that was built in code may hold any module; what is not known by row is run by itself."""
    hypernetwork = make(Architecture((1, 2, 1), "relu"), widths=(20,))
    if isinstance(module, nn.PReLU):
        module.weight.data.copy_(torch.linspace(-1, 1, 40))
        module.weight.data = module.weight.data[:7]  # a slope for each token
    for side in ("k", "v"):
        hypernetwork.side(20, side).linear[1] = copy.deepcopy(module).eval().requires_grad_(False)
    unet = make_small_unet()
    context = torch.randn(2, 7, 20, generator=torch.Generator().manual_seed(1))
    layer = find_sites(unet)[0].module
    for projection, side in ((layer.to_k, "k"), (layer.to_v, "v")):
        expected = projection(hypernetwork.transform(side, context, 0.7))
        with attach(unet, hypernetwork, 0.7):
            assert_same(projection(context), expected)


def test_a_matrix_that_cannot_be_folded_exactly_is_not(unet):
    """Huge weights that nearly cancel: what is folded would drown in rounding."""
    hypernetwork = make(Architecture((1, 1, 1)))
    with torch.no_grad():
        for width in ALL:
            for side in ("k", "v"):
                first, second = hypernetwork.side(width, side).linear
                first.weight.normal_(std=1e4)
                second.weight.copy_(torch.linalg.inv(first.weight.double()))  # the residual is x and some rounding
                first.bias.zero_()
    with attach(unet, hypernetwork) as attachment:
        for row in attachment.explain().rows:
            if row.kind == "self" and row.plan != "fold":
                assert "round" in row.why
        assert run(unet).isfinite().all()


# Strengths and windows


@pytest.mark.parametrize("name", ["affine", "relu", "norm"])
def test_a_new_strength_in_every_step(unet, name):
    hypernetwork = KINDS[name]
    with attach(unet, hypernetwork, 1.0) as attachment:
        for strength in (0.9, 0.5, 0.01, 1.0, -0.3, 0.0, 0.4, 3.0, 0.4):
            attachment.set_strength(strength)
            assert_same(run(unet), exactly(hypernetwork, strength=strength))


def test_hundreds_of_strengths_do_not_drift(unet):
    with attach(unet, AFFINE, 1.0) as attachment:
        injector = injector_of(unet)
        for step in range(300):
            attachment.set_strength(0.55 + 0.45 * (-1) ** step * step / 300)
            injector.update()
        attachment.set_strength(0.7)
        assert_same(run(unet), exactly(AFFINE, strength=0.7))


def test_a_new_strength_copies_no_weight(unet):
    with attach(unet, AFFINE, 1.0) as attachment:
        run(unet)
        pointers = [fold.weight.data_ptr() for fold in folds(unet)]
        attachment.set_strength(0.5)
        run(unet)
        assert [fold.weight.data_ptr() for fold in folds(unet)] == pointers


def test_windows(unet):
    first, second = AFFINE, KINDS["deep affine"]
    given = [Application(first, 0.8, end=0.6), Application(second, 0.5, start=0.3)]
    with attach(unet, given):
        for timestep, chain in (
            (900, [(first, 0.8)]),
            (550, [(first, 0.8), (second, 0.5)]),
            (100, [(second, 0.5)]),
        ) * 2:
            expected = exactly(chain, timestep=torch.tensor(timestep))
            assert_same(run(unet, timestep=torch.tensor(timestep)), expected)


def test_a_window_that_opens_again_folds_nothing_anew(unet):
    with attach(unet, AFFINE, 0.8, end=0.5):
        run(unet, timestep=torch.tensor(900))
        pointers = [fold.weight.data_ptr() for fold in folds(unet)]
        run(unet, timestep=torch.tensor(100))
        assert folds(unet) == []
        run(unet, timestep=torch.tensor(900))
        assert [fold.weight.data_ptr() for fold in folds(unet)] == pointers


# What changes the model's weights


def weight_of(unet):
    return find_sites(unet)[0].module.to_k.weight


CHANGES = {
    "in place": lambda w: w.mul_(1.5),
    "data in place": lambda w: w.data.mul_(1.5),
    "data replaced": lambda w: setattr(w, "data", w.data * 1.5),
    "a slice of data": lambda w: w.data[:7].mul_(1.5),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_weights_are_folded_anew(unet, name):
    twin = make_unet("sd1")
    with torch.no_grad():
        CHANGES[name](weight_of(twin))
    expected = exactly(AFFINE, unet=twin)
    with attach(unet, AFFINE) as attachment:
        run(unet)
        with torch.no_grad():
            CHANGES[name](weight_of(unet))
        assert_same(run(unet), expected)
        assert plans(attachment, "self") == {"fold"}
    assert torch.equal(run(unet), run(twin))


def test_a_replaced_parameter_and_a_loaded_state(unet):
    twin = make_unet("sd1")
    with torch.no_grad():
        weight_of(twin).mul_(1.5)
    expected = exactly(AFFINE, unet=twin)
    for assign in (False, True):
        unet = make_unet("sd1")
        with attach(unet, AFFINE):
            run(unet)
            unet.load_state_dict(twin.state_dict(), assign=assign)
            assert_same(run(unet), expected)
    unet = make_unet("sd1")
    with attach(unet, AFFINE):
        run(unet)
        find_sites(unet)[0].module.to_k.weight = nn.Parameter(weight_of(twin).clone(), requires_grad=False)
        assert_same(run(unet), expected)


def test_a_weight_that_keeps_changing_is_not_folded_for_ever(unet):
    with attach(unet, AFFINE) as attachment:
        for _ in range(MOST_CHANGES + 2):
            with torch.no_grad():
                weight_of(unet).mul_(1.01)
            run(unet)
        rows = [row for row in attachment.explain().rows if row.kind == "self"]
        assert (rows[0].plan, rows[1].plan) == ("collapse", "fold")
        assert "keeps changing" in rows[0].why
        with torch.no_grad():
            weight_of(unet).mul_(1.01)
        assert_same(run(unet), expected_of(unet))


def expected_of(unet):
    """The exact path on the model as it is, without what is attached."""
    twin = make_unet("sd1")
    twin.load_state_dict(unet.state_dict())
    return exactly(AFFINE, unet=twin)


def test_the_state_dict_is_the_models_own(unet):
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    with attach(unet, AFFINE):
        run(unet)
        for name, tensor in unet.state_dict().items():
            assert torch.equal(tensor, before[name]), name


def add_lora(unet, seed=3):
    torch.manual_seed(seed)
    unet.add_adapter(peft.LoraConfig(r=3, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    return unet.requires_grad_(False)


def test_lora_before_after_unloaded_and_fused(unet):
    expected, with_lora = exactly(AFFINE), exactly(AFFINE, unet=add_lora(make_unet("sd1")))
    with attach(unet, AFFINE) as attachment:
        assert_same(run(unet), expected)
        add_lora(unet)
        assert_same(run(unet), with_lora)
        assert plans(attachment, "self") == {"collapse"}
        unet.fuse_lora()
        assert_same(run(unet), with_lora)
        unet.unfuse_lora()
        unet.unload_lora()
        assert_same(run(unet), expected)
        assert plans(attachment, "self") == {"fold"}
    add_lora(unet)
    with attach(unet, AFFINE):
        assert_same(run(unet), with_lora)


def test_lora_merged_and_unloaded_between_two_calls(unet):
    """The projections are the same modules again, with other values that no version tells of."""
    with attach(unet, AFFINE):
        run(unet)
        add_lora(unet)
        for site in find_sites(unet):
            for name in ("to_q", "to_k", "to_v"):
                wrapped = getattr(site.module, name)
                wrapped.merge()
                setattr(site.module, name, wrapped.base_layer)
        result = run(unet)
    assert_same(result, exactly(AFFINE, unet=add_lora(make_unet("sd1"))))


def test_hooks_of_others_see_what_they_would_without_folding(unet):
    seen = []
    layer = find_sites(unet)[0].module.to_k
    with attach(unet, AFFINE):
        run(unet)
        handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
        assert_same(run(unet), exactly(AFFINE))
        with_plan = seen.pop()
        handle.remove()
        assert_same(run(unet), exactly(AFFINE))
    with attach(unet, AFFINE, exact=True):
        layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
        run(unet)
    assert_same(with_plan, seen.pop())
    run(unet)
    assert (with_plan - seen.pop()).abs().max() > 1e-2  # they see the changed context, not the model's own


class Quantised(nn.Linear):
    """A Linear whose forward does more than multiply by its weight, as quantised ones do."""

    def forward(self, x):
        return super().forward(x).mul(8).round().div(8)


def quantise(unet):
    for site in find_sites(unet):
        for name in ("to_k", "to_v"):
            getattr(site.module, name).__class__ = Quantised
    return unet


def test_quantised_projections_are_not_folded(unet):
    expected = exactly(AFFINE, unet=quantise(make_unet("sd1")))
    quantise(unet)
    with attach(unet, AFFINE) as attachment:
        assert_same(run(unet), expected, 2e-2)  # rounding to eighths may fall to either side
        assert plans(attachment, "self") == {"collapse"}
        assert "Quantised" in attachment.explain().rows[0].why


def test_a_linear_whose_class_somebody_has_changed_is_left_to_them(unet, monkeypatch):
    """As AUTOMATIC1111's webui puts LoRA into every Linear."""
    original = nn.Linear.forward
    changed = {site.module.to_k for site in find_sites(unet)}

    def patched(self, x):
        return original(self, x) * (1.25 if self in changed else 1.0)

    expected = exactly(AFFINE)
    for when in ("before", "after"):
        with monkeypatch.context() as patch:
            if when == "before":
                patch.setattr(nn.Linear, "forward", patched)
            with attach(unet, AFFINE) as attachment:
                if when == "after":
                    run(unet)
                    patch.setattr(nn.Linear, "forward", patched)
                result = run(unet)
                assert plans(attachment, "self") == {"collapse"}
            with attach(unet, AFFINE, exact=True):
                assert_same(result, run(unet))
        assert (result - expected).abs().max() > 1e-3
        with attach(unet, AFFINE):
            assert_same(run(unet), expected)


def test_a_class_changed_again_while_attached_is_called_as_it_is_now(unet, monkeypatch):
    """As AUTOMATIC1111's webui does: LoRA at its start, and for each sampling a cast of 8-bit weights around that."""
    original = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: original(self, x))

    def cast(self, x):
        return original(self, x) if self.weight.dtype == x.dtype else nn.functional.linear(x, self.weight.to(x.dtype))

    projections = [getattr(site.module, name) for site in find_sites(unet) for name in ("to_k", "to_v")]
    for projection in projections:
        projection.to(torch.float8_e4m3fn).to(torch.float32)  # rounded already
    expected = exactly(AFFINE, unet=unet)
    for projection in projections:
        projection.to(torch.float8_e4m3fn)
    with attach(unet, AFFINE, fold=False):
        with monkeypatch.context() as sampling:
            sampling.setattr(nn.Linear, "forward", cast)
            assert_same(run(unet), expected)
        twin = copy.deepcopy(unet)
    with monkeypatch.context() as sampling:
        sampling.setattr(nn.Linear, "forward", cast)
        assert_same(run(twin), expected)
        assert (run(unet) - expected).abs().max() > 1e-3


def test_weights_stored_in_eight_bits(unet):
    def cast(unet):
        unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
        return unet

    with attach(cast(make_unet("sd1")), AFFINE, exact=True) as attachment:
        expected = run(attachment._joined().model)
    with attach(unet, AFFINE) as attachment:
        run(unet)
        cast(unet)
        assert_same(run(unet), expected)
        assert plans(attachment, "self") == {"collapse"}
    with attach(unet, AFFINE) as attachment:
        assert_same(run(unet), expected)
        assert plans(attachment, "self") == {"collapse"}


def test_autocast_turned_on_and_off(unet, monkeypatch):
    inputs = unet_inputs()
    for name in ("affine", "relu"):
        with attach(unet, KINDS[name]):
            calls = counted(monkeypatch)
            for _ in range(2):
                assert_same(run(unet, **inputs), exactly(KINDS[name]))
                with torch.autocast("cpu", torch.bfloat16):
                    for _ in range(2):
                        result = run(unet, **inputs)
                assert_same(result.float(), exactly(KINDS[name]), 5e-2)
            assert len(calls) == 2 * 4  # k and v, each time that it was turned on or off


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("name", ["affine", "relu", "norm and dropout"])
def test_other_dtypes_before_and_after(unet, dtype, tolerance, name):
    """As close to float32 as the exact path is, but for the factor of two that is allowed."""
    inputs = moved(unet_inputs(), dtype)
    truth = exactly(KINDS[name]).double()
    expected = exactly(KINDS[name], unet=make_unet("sd1").to(dtype), **inputs).double()
    allowed = max(3 * float((expected - truth).square().mean().sqrt()), 1e-5 * float(truth.abs().max()))
    with attach(unet, KINDS[name]):
        run(unet)
        unet.to(dtype)
        result = run(unet, **inputs)
        assert result.dtype == dtype
        assert_same(result.double(), truth, tolerance)
        assert float((result.double() - truth).square().mean().sqrt()) <= allowed
        unet.to(torch.float32)
        run(unet)
    unet = make_unet("sd1").to(dtype)
    with attach(unet, KINDS[name]):
        assert_same(run(unet, **inputs).double(), truth, tolerance)
    KINDS[name].release()


def test_half_precision_is_computed_in_half_precision_unless_it_overflows():
    contexts = torch.randn(4, 300, 48).half()
    unet = make_unet("sd1").half()
    tame, wild = make(Architecture((1, 2, 1), "relu"), 1), make(Architecture((1, 2, 1), "relu"), 2)
    with torch.no_grad():
        for side in ("k", "v"):
            wild.side(48, side).linear[0].weight.mul_(1e5)
            wild.side(48, side).linear[2].weight.mul_(1e-5)
    for hypernetwork, dtype in ((tame, torch.float16), (wild, torch.float32)):
        with attach(unet, hypernetwork), torch.no_grad():
            layer = next(site.module for site in find_sites(unet) if site.width == 48)
            hook = next(h for h in layer.to_k._forward_pre_hooks.values())
            changed = hook.apply(contexts)
            assert changed.isfinite().all()
            assert_same(changed.float(), hypernetwork.transform("k", contexts, 1.0).float(), 4e-3)
            stage = hook.plan.stages[0].stages[0]
            assert set(stage._dtypes.values()) == {dtype}


@pytest.mark.parametrize("way", ["sequential", "model", "group"])
def test_offloading(unet, way):
    expected = exactly(AFFINE)

    def offload():
        if way == "sequential":
            cpu_offload(unet, execution_device="cpu")
        elif way == "model":
            cpu_offload_with_hook(unet, execution_device="cpu")
        else:
            cpu = torch.device("cpu")
            apply_group_offloading(unet, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")

    with attach(unet, AFFINE) as attachment:
        assert_same(run(unet), expected)
        offload()
        assert_same(run(unet), expected)
        assert plans(attachment, "self") == {"collapse"}
        assert "offloaded" in attachment.explain().rows[0].why
    plain = run(make_unet("sd1"))
    assert_same(run(unet), plain)
    with attach(unet, AFFINE):
        assert_same(run(unet), expected)
    if way == "sequential":
        with attach(unet, AFFINE) as attachment:
            remove_hook_from_submodules(unet)
            assert_same(run(unet), expected)
    assert_same(run(unet), plain)


# Copies, saving, threads


def test_copies_fold_for_themselves(unet):
    expected, other = exactly(AFFINE), exactly(AFFINE, strength=0.3)
    attachment = attach(unet, AFFINE)
    run(unet)
    twin = copy.deepcopy(unet)
    attachments(twin)[0].set_strength(0.3)
    assert_same(run(twin), other)
    assert plans(attachments(twin)[0], "self") == {"fold"}
    assert_same(run(unet), expected)
    attachment.detach()
    assert_same(run(twin), other)
    attachments(twin)[0].detach()
    assert torch.equal(run(twin), run(unet))


@pytest.mark.parametrize("name", ["affine", "relu"])
def test_two_pipelines_at_once_on_one_model(unet, name):
    """Different prompts, batches and seeds; each must get what it would get alone."""
    inputs = [unet_inputs(batch=1 + index % 2, seed=index) for index in range(4)]
    with attach(unet, KINDS[name], 0.8, exact=True):
        expected = [run(unet, **each) for each in inputs]
    errors: list[BaseException] = []

    def generate(index: int) -> None:
        try:
            for _ in range(6):
                assert_same(run(unet, **inputs[index]), expected[index])
        except BaseException as error:
            errors.append(error)

    with attach(unet, KINDS[name], 0.8):
        threads = [threading.Thread(target=generate, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


def test_inference_mode_and_back(unet):
    for name in ("affine", "relu"):
        expected = exactly(KINDS[name])
        inputs = unet_inputs()
        with torch.inference_mode(), attach(unet, KINDS[name]) as attachment:
            assert_same(unet(**inputs).sample, expected)
            attachment.set_strength(0.5)
            unet(**inputs)
            attachment.set_strength(1.0)
            assert_same(unet(**inputs).sample, expected)
            kept = attachments(unet)
        assert kept
        with attach(unet, KINDS[name]):
            with torch.inference_mode():
                unet(**inputs)
            trained = unet_inputs()["sample"].requires_grad_()
            unet(**{**inputs, "sample": trained}).sample.sum().backward()  # what was kept takes no gradients
            assert trained.grad is not None


# Contexts that are kept


def counted(monkeypatch):
    """How often contexts were computed."""
    calls = []
    original = CachedStages._compute
    monkeypatch.setattr(CachedStages, "_compute", lambda self, context: calls.append(self) or original(self, context))
    return calls


def test_a_text_is_computed_once_for_all_layers_and_steps(unet, monkeypatch):
    calls = counted(monkeypatch)
    inputs = unet_inputs()
    with attach(unet, RELU):
        for timestep in (900, 500, 100):
            run(unet, **{**inputs, "timestep": torch.tensor(timestep)})
        assert len(calls) == 2  # k and v
        run(unet, **unet_inputs(seed=5))
        assert len(calls) == 4
        run(unet, **inputs)
        assert len(calls) == 4  # the first prompt is still there


@pytest.mark.parametrize("inference", [False, True])
def test_a_context_that_is_changed_in_place_is_computed_anew(unet, inference):
    with torch.inference_mode(inference):
        inputs = unet_inputs()
        context = inputs["encoder_hidden_states"]

        def replaced():
            context.data = context * 0.5

        with attach(unet, RELU):
            for change in (lambda: None, lambda: context.mul_(-1.1), lambda: context[:, 3].zero_(), replaced):
                change()
                result = unet(**inputs).sample.clone()
                assert_same(result, exactly(RELU, encoder_hidden_states=context.clone()))


# Changes that torch does not count

HIDDEN_CHANGES = {
    "hypernetwork, data": lambda hypernetwork, unet, context: [p.data.mul_(0.5) for p in hypernetwork.parameters()],
    "hypernetwork, numpy": lambda hypernetwork, unet, context: [
        p.numpy().__imul__(0.5) for p in hypernetwork.parameters()
    ],
    "hypernetwork, one side": lambda hypernetwork, unet, context: [
        p.data.mul_(0.5) for p in hypernetwork.side(48, "v").parameters()
    ],
    "hypernetwork, biases": lambda hypernetwork, unet, context: [
        p.data.add_(0.5) for p in hypernetwork.parameters() if p.ndim == 1
    ],
    "text, data": lambda hypernetwork, unet, context: context.data.mul_(2),
    "text, numpy": lambda hypernetwork, unet, context: context.numpy().__imul__(2),
    "text, one value": lambda hypernetwork, unet, context: context.data[0, 2, 3].add_(5),
    "model, data": lambda hypernetwork, unet, context: [p.data.mul_(1.1) for p in unet.parameters()],
    "model, one row": lambda hypernetwork, unet, context: find_sites(unet)[0].module.to_k.weight.data[5].add_(1),
}


@pytest.mark.parametrize("change", HIDDEN_CHANGES)
@pytest.mark.parametrize("name", ["affine", "relu"])
@pytest.mark.parametrize("inference", [False, True])
def test_changes_that_torch_does_not_count_are_seen_on_the_processor(unet, name, change, inference):
    hypernetwork, inputs = copy.deepcopy(KINDS[name]), unet_inputs()
    with torch.inference_mode(inference), attach(unet, hypernetwork, 0.7):
        before = run(unet, **inputs)
        for _ in range(2):
            HIDDEN_CHANGES[change](hypernetwork, unet, inputs["encoder_hidden_states"])
            found = run(unet, **inputs)
            assert (found - before).abs().max() > 1e-3
            assert_same(found, exactly(copy.deepcopy(hypernetwork), unet=copy_of(unet), strength=0.7, **inputs))


def copy_of(unet):
    """A model with the same weights and nothing attached."""
    twin = make_unet("sd1")
    twin.load_state_dict(unet.state_dict())
    return twin


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_copies_in_half_precision_follow_such_changes(unet, dtype):
    unet.to(dtype)
    hypernetwork, inputs = copy.deepcopy(RELU), moved(unet_inputs(), dtype)
    with attach(unet, hypernetwork):
        run(unet, **inputs)
        for parameter in hypernetwork.parameters():
            parameter.data.mul_(0.3)
        found = run(unet, **inputs)
    expected = exactly(copy.deepcopy(hypernetwork), unet=unet, **inputs)
    assert_same(found.float(), expected.float(), 0.01 if dtype == torch.float16 else 0.05)


def test_a_bias_of_the_model_that_is_changed_so_is_seen(unet):
    layer = find_sites(unet)[0].module
    with torch.no_grad():
        layer.to_v = nn.Linear(20, 20).requires_grad_(False)
    with attach(unet, AFFINE):
        before = run(unet)
        layer.to_v.bias.data.add_(1)
        found = run(unet)
        assert folds(unet)
    assert (found - before).abs().max() > 1e-3
    assert_same(found, exactly(AFFINE, unet=unet))


@pytest.mark.parametrize("name", ["affine", "relu"])
def test_a_hypernetwork_of_inference_mode_is_seen_too(unet, name):
    with torch.inference_mode():
        hypernetwork = copy.deepcopy(KINDS[name])
        for parameter in hypernetwork.parameters():
            parameter.data = parameter.data.clone()
    with torch.no_grad(), attach(unet, hypernetwork):
        assert_same(run(unet), exactly(KINDS[name]))
        with torch.inference_mode():
            for parameter in hypernetwork.parameters():
                parameter.data.mul_(0.5)
        found = run(unet)
        assert_same(found, exactly(copy.deepcopy(hypernetwork)))


@pytest.mark.parametrize("name", ["affine", "relu"])
def test_a_module_of_a_hypernetwork_that_is_replaced_is_seen(unet, name):
    hypernetwork = copy.deepcopy(KINDS[name])
    with attach(unet, hypernetwork):
        for module in (nn.Tanh(), nn.Identity(), nn.Linear(96, 96).requires_grad_(False), nn.ReLU()):
            run(unet)
            for side in "kv":
                layers = hypernetwork.side(48, side).linear
                if name == "relu":
                    layers[1] = copy.deepcopy(module)
                else:
                    layers.append(nn.Linear(48, 48).requires_grad_(False))
            assert_same(run(unet), exactly(copy.deepcopy(hypernetwork)))


@pytest.mark.parametrize("name", ["affine", "relu"])
def test_refresh_sees_what_is_not_seen_by_itself(unet, name):
    """One value of a large tensor is between the places that are compared."""
    hypernetwork, inputs = copy.deepcopy(KINDS[name]), unet_inputs()
    with attach(unet, hypernetwork) as attachment:
        before = run(unet, **inputs)
        for width in ALL:
            for side in "kv":
                hypernetwork.side(width, side).linear[0].weight.data[1, :7].add_(3)
        attachment.refresh()
        found = run(unet, **inputs)
        assert (found - before).abs().max() > 1e-3
        assert_same(found, exactly(copy.deepcopy(hypernetwork)))
    with pytest.raises(HypernetworkError, match="detached"):
        attachment.refresh()


def test_refresh_computes_once(unet, monkeypatch):
    inputs = unet_inputs()
    with attach(unet, [RELU, AFFINE]) as attachment:
        run(unet, **inputs)
        calls = counted(monkeypatch)
        for refreshed in (False, True, False):
            if refreshed:
                attachment.refresh()
            run(unet, **inputs)
        assert len(calls) == 2


def test_values_are_compared_once_for_each_call(unet, monkeypatch):
    compared = []
    original = torch.equal
    inputs = unet_inputs()
    with attach(unet, RELU):
        run(unet, **inputs)
        text = inputs["encoder_hidden_states"]
        monkeypatch.setattr(torch, "equal", lambda a, b: compared.append(b is text) or original(a, b))
        for calls in (1, 2):
            run(unet, **inputs)
            assert sum(compared) == 2 * calls  # k and v


def test_a_result_that_somebody_changes_is_not_used_again(unet):
    inputs = unet_inputs()
    layer = find_sites(unet)[1].module
    with attach(unet, RELU):
        run(unet, **inputs)
        handle = layer.to_k.register_forward_pre_hook(lambda module, args: (args[0].mul_(2),))
        run(unet, **inputs)
        handle.remove()
        assert_same(run(unet, **inputs), exactly(RELU))


def test_batches_prompts_and_lengths_may_change(unet):
    with attach(unet, RELU):
        for batch, seed in ((2, 1), (1, 1), (3, 2), (2, 1)):
            inputs = unet_inputs(batch=batch, seed=seed)
            assert_same(run(unet, **inputs), exactly(RELU, **inputs))
        inputs = {**unet_inputs(), "encoder_hidden_states": torch.randn(2, 11, 48)}
        assert_same(run(unet, **inputs), exactly(RELU, **inputs))


def test_the_place_of_a_freed_context_is_no_context():
    """Tensors that come and go at the same address, each computed for itself."""
    stage = CachedStages(())
    stage.stages = (lambda context: context * 2,)
    for value in range(200):
        context = torch.full((2, 3), float(value))
        assert torch.equal(stage(context), context * 2)
        del context
    gc.collect()
    assert stage._results == {}


def test_what_is_kept_is_bounded_and_goes_with_the_contexts():
    stage = CachedStages(())
    stage.stages = (lambda context: context * 2,)
    contexts = [torch.randn(2, 3) for _ in range(20)]
    for context in contexts:
        stage(context)
    assert len(stage._results) == CachedStages.LIMIT
    contexts.clear()
    del context
    gc.collect()
    assert stage._results == {}


def test_changed_parameters_of_a_hypernetwork_are_seen(unet):
    for name in ("affine", "relu"):
        hypernetwork = copy.deepcopy(KINDS[name])
        inputs = unet_inputs()
        with attach(unet, hypernetwork):
            run(unet, **inputs)
            with torch.no_grad():
                for parameter in hypernetwork.parameters():
                    parameter.mul_(0.7)
            assert_same(run(unet, **inputs), exactly(copy.deepcopy(hypernetwork)))
            hypernetwork.double()
            assert_same(run(unet, **inputs), exactly(copy.deepcopy(hypernetwork)))


# Gradients


def test_gradients_of_contexts_and_weights(unet):
    for hypernetwork in (AFFINE, RELU):
        found = []
        for exact in (True, False):
            twin = make_unet("sd1").requires_grad_(True)
            inputs = unet_inputs()
            inputs["encoder_hidden_states"].requires_grad_()
            with attach(twin, hypernetwork, exact=exact):
                run(twin, **{k: v.detach() for k, v in inputs.items()})  # keeps and folds
                twin(**inputs).sample.square().mean().backward()
            found.append([inputs["encoder_hidden_states"].grad, *(p.grad for p in twin.parameters())])
        for expected, gradient in zip(*found, strict=True):
            assert_same(gradient, expected, 1e-4)


@pytest.mark.parametrize("name", ["affine", "relu"])
def test_a_hypernetwork_in_training_is_neither_folded_nor_kept(unet, name):
    hypernetwork = copy.deepcopy(KINDS[name]).requires_grad_(True)
    inputs = unet_inputs()
    optimizer = torch.optim.SGD(hypernetwork.parameters(), 0.05)
    with attach(unet, hypernetwork) as attachment:
        for _ in range(2):
            optimizer.zero_grad()
            unet(**inputs).sample.square().mean().backward()
            assert all(p.grad is not None and p.grad.abs().max() > 0 for p in hypernetwork.parameters())
            optimizer.step()
            assert plans(attachment) == {"exact"}
            assert_same(run(unet, **inputs), exactly(copy.deepcopy(hypernetwork).requires_grad_(False)))
        hypernetwork.requires_grad_(False)
        assert_same(run(unet, **inputs), exactly(copy.deepcopy(hypernetwork)))
        assert "exact" not in plans(attachment)


# explain


def test_the_step_is_counted_as_it_runs():
    from diffusers.models.attention_processor import AttnProcessor
    from torch.utils.flop_counter import FlopCounterMode

    for kind in WIDTHS:
        unet = make_unet(kind)
        unet.set_attn_processor(AttnProcessor())  # its products are counted one by one
        with FlopCounterMode(display=False) as counter:
            run(unet, kind)
        step = count_step(unet, 2, (16, 16), 7)
        assert step is not None
        assert step.multiply_adds == counter.get_total_flops() // 2


def test_what_hypernetworks_add_is_counted_as_it_runs(unet):
    from torch.utils.flop_counter import FlopCounterMode, addmm_flop

    in_place = {torch.ops.aten.addmm_: lambda *shapes, **_: addmm_flop(*shapes[:3])}

    def counted_with(**options):
        with attach(unet, [AFFINE, RELU], **options) as attachment:
            inputs = unet_inputs()
            run(unet, **inputs)
            explanation = attachment.explain()
            with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
                run(unet, **inputs)
        return counter.get_total_flops() // 2, explanation

    with FlopCounterMode(display=False) as counter:
        run(unet)
    bare = counter.get_total_flops() // 2
    exact, explanation = counted_with(exact=True)
    assert explanation.total("multiply_adds") == explanation.total("multiply_adds_before") == exact - bare
    planned, explanation = counted_with()
    assert explanation.total("multiply_adds_before") == exact - bare
    assert explanation.total("multiply_adds") == planned - bare < exact - bare


def test_the_explanation_can_be_printed_and_stored(unet):
    import json

    with attach(unet, [RELU, AFFINE], 0.5, end=0.5) as attachment:
        explanation = attachment.explain(batch=4, size=(32, 16))
        text = str(explanation)
        assert "4 x 32 x 16 latents" in text
        assert "relu between the layers" in text
        stored = json.loads(json.dumps(explanation.to_dict()))
        assert len(stored["rows"]) == 40
        assert stored["totals"]["plans"] == {"live": 20, "cache": 20}
        assert 0 < stored["totals"]["share"] < stored["totals"]["share_before"] < 1
        assert stored["step"]["size"] == [32, 16]
    with pytest.raises(Exception, match="detached"):
        attachment.explain()


def test_memory_is_bounded_and_stated(unet):
    with attach(unet, AFFINE) as attachment:
        kept = sum(fold.bytes for fold in folds(unet))
        assert attachment.explain().total("kept_bytes") == kept
        projections = [getattr(s.module, n) for s in find_sites(unet) if s.kind == "self" for n in ("to_k", "to_v")]
        one_copy = sum((p.weight.numel() + len(p.weight)) * 4 for p in projections)
        assert kept == one_copy
        for strength in (0.5, 0.2, 0.001, -1):
            attachment.set_strength(strength)
            run(unet)
        assert sum(fold.bytes for fold in folds(unet)) == one_copy
    assert injector_of(unet) is None


# The reference of the other tests shares no code with the package; this ties both together


def test_the_exact_path_is_the_reference(unet):
    assert_same(exactly(RELU, strength=0.8), run(reference(unet, [(RELU, 0.8, 0.8)])))


@pytest.mark.parametrize("change", ["in place", "replaced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_that_changes_is_computed_with_its_new_values_in_any_precision(
    change: str, dtype: torch.dtype, unet: nn.Module
) -> None:
    """In another precision than the file's it is computed with copies, which are of the old values then."""
    hypernetwork = copy.deepcopy(RELU)
    inputs = moved(unet_inputs(), dtype)
    unet.to(dtype)
    with attach(unet, hypernetwork), torch.no_grad():
        run(unet, **inputs)
        for module in hypernetwork.modules():
            for name, parameter in list(module._parameters.items()):
                if change == "in place":
                    parameter.mul_(-0.5)
                else:
                    setattr(module, name, nn.Parameter(parameter * -0.5, requires_grad=False))
        found = run(unet, **inputs)
    fresh = Hypernetwork.new(ALL, RELU.architecture, name="fresh").requires_grad_(False)
    fresh.load_state_dict(hypernetwork.state_dict())
    with attach(unet, fresh):
        assert torch.equal(run(unet, **inputs), found)


@pytest.mark.parametrize("exact", [True, False])
def test_a_copy_made_in_inference_mode_serves_where_gradients_are_recorded(exact: bool, unet: nn.Module) -> None:
    hypernetwork = copy.deepcopy(RELU).half()  # computed with copies in float32
    with attach(unet, hypernetwork, exact=exact):
        with torch.inference_mode():
            unet(**unet_inputs())
        text = unet_inputs()["encoder_hidden_states"].requires_grad_()
        (found,) = torch.autograd.grad(unet(**{**unet_inputs(), "encoder_hidden_states": text}).sample.sum(), text)
    with attach(unet, copy.deepcopy(RELU).half(), exact=True):
        (expected,) = torch.autograd.grad(unet(**{**unet_inputs(), "encoder_hidden_states": text}).sample.sum(), text)
    assert_same(found, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["norm", "norm and dropout", "relu"])
def test_half_precision_is_as_near_to_float32_as_the_exact_path(name: str, dtype: torch.dtype, unet: nn.Module) -> None:
    """Norms and all: what half precision does to the contexts is lost in what it does to the rest of the model."""
    unet.to(dtype)
    wide = copy.deepcopy(unet).float()
    half = moved(unet_inputs(), dtype)
    truth = exactly(KINDS[name], unet=wide, **moved(half, torch.float32))
    exact = exactly(KINDS[name], unet=unet, **half)
    with attach(unet, KINDS[name]) as attachment:
        found = run(unet, **half)
        assert "live" in plans(attachment, "self")
    errors = [(each.float() - truth).square().mean().sqrt() for each in (found, exact)]
    assert errors[0] < 1.15 * errors[1]
