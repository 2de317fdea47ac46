"""Each plan gives the result of the exact path, on every architecture."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hnloader.activations import ACTIVATIONS
from hnloader.attention import Application, attach, find_sites
from hnloader.network import Architecture, Hypernetwork
from tests.support.plan_models import AFFINE, ALL, KINDS, RELU, exactly, folds, in_a_call, make, plans
from tests.support.small_models import (
    WIDTHS,
    assert_same,
    assert_untouched,
    fingerprint,
    make_small_unet,
    make_unet,
    moved,
    reference,
    run,
    unet_inputs,
)


@pytest.fixture
def unet():
    return make_unet("sd1")


# The choice of plans


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("strength", [1.0, -0.4])
def test_every_architecture_matches_the_exact_path(unet, name, strength):
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
        five = attachment.explain().to_dict()["totals"]
        assert five["multiply_adds"] < 0
    with attach(unet, AFFINE, 0.2) as attachment:
        assert attachment.explain().to_dict()["totals"]["kept_bytes"] == five["kept_bytes"]


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
def test_random_architectures(structure, activation, norm, activate_output, strength, batch):
    """A random architecture in one attention layer, on contexts of several blocks of rows."""
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
                    assert_same(in_a_call(unet, lambda: projection(context)), expected)  # noqa: B023


# Activations over several values, which blocks of rows would separate


def formula(hypernetwork: Hypernetwork, side: str, context: torch.Tensor, strength: float) -> torch.Tensor:
    """Compute x + strength * mlp(x) with torch's modules, by the names in the file."""
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
    """Compute the output of plain hooks with the formula."""
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
def test_every_activation_matches_the_formula(unet, name, fused):
    plain = make(Architecture((1, 2, 1), name))
    rich = make(Architecture((1, 0.5, 1.5, 1), name, norm=True, activate_output=True, dropout=(0, 0.3, 0, 0)), seed=1)
    chains = [(plain, 1.0)], [(rich, -0.6)], [(AFFINE, 0.3), (plain, 0.4), (KINDS["deep affine"], 0.2)]
    for batch, chain in enumerate(chains, 1):
        inputs = unet_inputs(batch=batch)
        expected = by_formula(unet, chain, **inputs)
        if fused:
            unet.fuse_qkv_projections()
        # hardshrink jumps at 0.5: after rounding, a value close to it can be on the other side.
        tolerance = 1e-3 if name == "hardshrink" else 1e-5
        for options in ({}, {"fold": False}, {"exact": True}):
            with attach(unet, chain, **options):
                assert_same(run(unet, **inputs), expected, tolerance)
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
        except ValueError:  # softmax2d needs other dimensions
            assert name == "softmax2d" and len(shape) == 2
            continue
        with attach(unet, hypernetwork, 0.7):
            assert_same(in_a_call(unet, lambda: projection(context)), expected)  # noqa: B023


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_softmax_in_half_precision_matches_the_exact_path(unet, dtype):
    unet.to(dtype)
    hypernetwork = make(Architecture((1, 2, 1), "softmax"))
    inputs = moved(unet_inputs(), dtype)
    expected = exactly(hypernetwork, unet=unet, **inputs)
    with attach(unet, hypernetwork):
        assert torch.equal(run(unet, **inputs), expected)


class Reversing(nn.ReLU):
    """A custom activation over all tokens."""

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
def test_modules_from_other_programs(module):
    """A network from code may hold any module; unknown modules run on whole contexts."""
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
            assert_same(in_a_call(unet, lambda: projection(context)), expected)  # noqa: B023


def test_a_matrix_that_would_round_too_much_is_not_folded(unet):
    """Huge weights that nearly cancel would lose the fold in rounding."""
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


# The exact path against the independent reference


def test_the_exact_path_is_the_reference(unet):
    assert_same(exactly(RELU, strength=0.8), run(reference(unet, [(RELU, 0.8, 0.8)])))


@pytest.mark.parametrize("change", ["in place", "replaced"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changed_parameters_are_used_in_any_precision(change: str, dtype: torch.dtype, unet: nn.Module) -> None:
    """In another precision than the file's, copies of the parameters must follow."""
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
def test_a_copy_from_inference_mode_works_with_gradients(exact: bool, unet: nn.Module) -> None:
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
def test_half_precision_is_as_close_to_float32_as_the_exact_path(
    name: str, dtype: torch.dtype, unet: nn.Module
) -> None:
    """The error in the contexts is small beside the error in the rest of the model, even with norms."""
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
