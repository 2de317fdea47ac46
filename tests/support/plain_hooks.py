"""An independent reference: hypernetworks on a bare model with plain hooks, as docs/format.md describes them."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.attention import AttentionSite, find_sites
from hnloader.network import Hypernetwork
from tests.support.builders import ACTIVATION_CLASSES
from tests.support.small_models import make_hypernetwork

AFFINE = make_hypernetwork((20, 48), 0, "affine", activation=None)
RELU = make_hypernetwork((20, 48), 1, "relu")
NORM = make_hypernetwork((20, 48), 2, "norm", norm=True)
HALF = (torch.float16, torch.bfloat16)
Strength = float | Callable[[AttentionSite], float]
Chain = Sequence[tuple[Hypernetwork, Strength]]
# For `make_small_unet`.
CHAINS: dict[str, Chain] = {
    "affine": [(AFFINE, 0.8)],
    "relu": [(RELU, 0.8)],
    "norm": [(NORM, -0.6)],
    "chain": [(AFFINE, 0.4), (RELU, 0.5), (AFFINE, -0.3)],
}


def changed_context(hypernetwork: Hypernetwork, side: str, context: Tensor, strength: float) -> Tensor:
    """Return context + strength * residual, module by module, in float32 (float64 for a float64 context)."""
    assert hypernetwork.architecture.residual is None
    wide = torch.promote_types(context.dtype, torch.float32)
    with torch.autocast(context.device.type, enabled=False):
        x = context.to(wide)
        for module in hypernetwork.side(context.shape[-1], side).linear:
            if isinstance(module, nn.Linear):
                x = functional.linear(x, module.weight.to(wide), module.bias.to(wide))
            elif isinstance(module, nn.LayerNorm):
                x = functional.layer_norm(x, x.shape[-1:], module.weight.to(wide), module.bias.to(wide))
            elif not isinstance(module, nn.Dropout):
                activation = ACTIVATION_CLASSES[hypernetwork.architecture.activation]().eval()
                activation.load_state_dict(module.state_dict())
                x = activation.to(wide)(x)
        return (context.to(wide) + strength * x).to(context.dtype)


# The projections of a layer, and which side each part of their output belongs to.
SLOTS = {"to_k": "k", "to_v": "v", "to_qkv": "qkv", "to_kv": "kv"}


@contextlib.contextmanager
def plain_hooks(model: nn.Module, chain: Chain, *, prepend: bool = False) -> Iterator[nn.Module]:
    """Apply a chain to a bare model until the end of the block, with `prepend` before the hooks of other programs."""
    handles = []
    for site in find_sites(model):
        links = [(each, value(site) if callable(value) else value) for each, value in chain]
        for slot, sides in SLOTS.items():
            module = getattr(site.module, slot, None)
            if module is not None and len(sides) == 1:
                handles.append(module.register_forward_pre_hook(_changing_input(links, sides), prepend=prepend))
            elif module is not None:
                handles.append(module.register_forward_hook(_changing_output(links, sides)))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


Links = Sequence[tuple[Hypernetwork, float]]


def _through(links: Links, side: str, context: Tensor) -> Tensor:
    for hypernetwork, strength in links:
        if side != "q" and context.shape[-1] in hypernetwork.widths:
            context = changed_context(hypernetwork, side, context, strength)
    return context


def _changing_input(links: Links, side: str) -> Callable[..., tuple[Tensor]]:
    return lambda module, args: (_through(links, side, args[0]),)


def _changing_output(links: Links, sides: str) -> Callable[..., Tensor]:
    """Compute a fused projection once for each side and take that side's part."""

    def change(module: nn.Module, args: tuple[Tensor], result: Tensor) -> Tensor:
        results = [module.forward(_through(links, side, args[0])).chunk(len(sides), -1) for side in sides]
        return torch.cat([parts[index] for index, parts in enumerate(results)], -1)

    return change


def output(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """Return the output of a UNet as a tensor."""
    result = model(**inputs)
    return result if isinstance(result, Tensor) else result.sample


def expected_output(bare: nn.Module, chain: Chain, inputs: dict[str, Any]) -> Tensor:
    """Return the output of plain hooks on a bare model."""
    with torch.no_grad(), plain_hooks(bare, chain):
        return output(bare, inputs)


def assert_matches(found: Tensor, bare: nn.Module, chain: Chain, inputs: dict[str, Any]) -> None:
    """Assert that an output agrees with plain hooks on a bare model, within the bounds of docs/plans.md.

    In half precision, the bound is three times the error of the plain hooks against float32.
    """
    expected = expected_output(bare, chain, inputs)
    assert found.dtype == expected.dtype
    found, expected = found.detach().double(), expected.double()
    assert found.isfinite().all()
    if next(bare.parameters()).dtype not in HALF:
        difference = float((found - expected).abs().max() / expected.abs().max())
        assert difference <= 1e-5, f"differs by {difference:.2e}"
        return
    wide = {name: value.float() if _is_half(value) else value for name, value in inputs.items()}
    truth = expected_output(copy.deepcopy(bare).float(), chain, wide).double()
    error, allowed = ((each - truth).square().mean().sqrt() for each in (found, expected))
    assert error <= 3 * allowed, f"the error is {error / allowed:.2f} of that of plain hooks"


def _is_half(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype in HALF


class Twins:
    """A model for attachments and a bare twin, to which a test makes the same changes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.bare = copy.deepcopy(model)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter((self.model, self.bare))

    def check(self, chain: Chain, inputs: dict[str, Any]) -> Tensor:
        """Call the model without gradients, compare its output with the twin's and return it."""
        with torch.no_grad():
            found = output(self.model, inputs)
        assert_matches(found, self.bare, chain, inputs)
        return found
