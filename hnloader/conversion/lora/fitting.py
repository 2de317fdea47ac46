"""The best weights for what hypernetworks do at one projection of one attention layer.

With c the context and a(c) what the chain adds to it, the projection's output changes by y = W a(c). Attention
is not changed by a vector that is added to all keys of a sequence: the logits of a query move together, and the
softmax takes no notice. So keys are fitted and measured after subtracting their mean over the tokens of each
sequence. For values, W times the constant part b of a(c) = A c + b reaches the layer's output unchanged, because
attention weights sum to 1: it can be carried by the output projection's bias, or by the weight as far as the
contexts' statistics allow.

The closest map of rank r, in the mean over contexts of second moment C, to c -> M c is U_r U_r^T M with U the left
singular vectors of M C^(1/2): reduced-rank regression (A. J. Izenman, Reduced-rank regression for the multivariate
linear model, Journal of Multivariate Analysis 5, 1975). A plain SVD of M is the same with C = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hnloader.affine import AffineMap
from hnloader.conversion.lora.statistics import Layer, Role
from hnloader.network import SideName

# Tried as multiples of the mean of C's diagonal; the one with the least error on samples kept for it is taken.
RIDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Added to C's diagonal when ranking directions, so that those never seen come last instead of in any order.
_UNSEEN = 1e-6


# A change below this share of the squares of the whole is rounding, not something to be represented.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Error:
    """Sums of squares: of what is wrong, of the change that was to be made, and of the whole output with it."""

    wrong: float = 0.0
    change: float = 0.0
    whole: float = 0.0

    def __add__(self, other: Error) -> Error:
        return Error(self.wrong + other.wrong, self.change + other.change, self.whole + other.whole)

    @property
    def of_change(self) -> float:
        """What is wrong, relative to the hypernetworks' change: 1 would be as bad as doing nothing."""
        return (self.wrong / self.change) ** 0.5 if self.change > _ROUNDING * self.whole else 0.0

    @property
    def of_whole(self) -> float:
        """What is wrong, relative to the keys or values themselves."""
        return (self.wrong / self.whole) ** 0.5 if self.whole else 0.0


@dataclass(frozen=True)
class Ranked:
    """The directions of a projection's change, the most important ones first.

    Attributes:
        up: Orthonormal columns [outputs, n].
        down: `up^T M` [n, inputs]; the first r columns and rows multiply to the best map of rank r.
        errors: Error relative to the change on the samples kept for choosing, at the ranks 0 to n.
    """

    up: Tensor
    down: Tensor
    errors: Tensor

    def rank_for(self, error: float) -> int:
        """The least rank, at least 1, whose error is at most this.

        Where none is, the change is no linear map of the context: then the least whose own error adds little to
        what no rank can represent.
        """
        floor = float(self.errors.min())
        allowed = max(error, (floor**2 + (error / 2) ** 2) ** 0.5)
        return max(1, int((self.errors <= allowed).nonzero()[0]))


def fit_context_map(layer: Layer, side: SideName, *, with_bias: bool) -> AffineMap:
    """The map of contexts that comes closest to what the chain adds, in float64.

    Affine chains give their own map. Others, and the constant of values where no bias can hold it, are fitted by
    least squares on the samples, with the ridge that does best on the samples kept for choosing.

    Args:
        layer: The samples.
        side: Keys are fitted but for a constant, which they do not need; their bias here is an affine chain's own.
        with_bias: Whether values may have a bias; if not, the bias of the result for "v" is 0.
    """
    moments = layer.moments
    exact = layer.chain.affine(layer.site, side)
    if exact is not None and (with_bias or side == "k" or not exact.bias.any()):
        return exact
    choose = list(changes(layer, side, "choose"))
    if side == "k":
        inner = [(_inner(c), _inner(a)) for c, a in choose]
        matrix = _regression(moments.inner_ac[side], moments.inner_cc, inner)
        return AffineMap(matrix, matrix.new_zeros(len(matrix)))
    if exact is not None:
        rest = [(c, exact.bias.expand_as(c)) for c, _ in choose]
        matrix = exact.matrix + _regression(torch.outer(exact.bias, moments.c), moments.cc, rest)
        return AffineMap(matrix, torch.zeros_like(exact.bias))
    if not with_bias:
        matrix = _regression(moments.ac[side], moments.cc, choose)
        return AffineMap(matrix, matrix.new_zeros(len(matrix)))
    mean, mean_a = moments.c / moments.count, moments.a[side] / moments.count
    around = [(c - mean, a - mean_a) for c, a in choose]
    ac = moments.ac[side] - torch.outer(moments.a[side], mean)
    matrix = _regression(ac, moments.cc - torch.outer(moments.c, mean), around)
    return AffineMap(matrix, mean_a - matrix @ mean)


def rank_directions(weight: Tensor, matrix: Tensor, layer: Layer, side: SideName, *, plain: bool = False) -> Ranked:
    """Order what a projection's change consists of by how much of it the layer's contexts bring out.

    Args:
        weight: The projection's weight W [outputs, width], float64.
        matrix: The context map A [width, width]; the change to approximate is W A.
        layer: The samples.
        side: Which projection it is.
        plain: By a plain SVD of W A instead, as if all contexts were equally likely; to compare with.
    """
    change = weight @ matrix
    weighted = change
    moment = layer.moments.inner_cc if side == "k" else layer.moments.cc
    unseen = _UNSEEN * moment.diagonal().mean()
    # Where a layer sees a single token, as self-attention at the smallest size may, no key changes anything.
    if not plain and unseen > 0:
        root = torch.linalg.cholesky(moment + unseen * torch.eye(len(moment), dtype=moment.dtype))
        weighted = change @ root
    up = torch.linalg.svd(weighted, full_matrices=False).U
    down = up.T @ change
    wrong, total = torch.zeros(up.shape[1] + 1, dtype=torch.float64), 0.0
    for c, a in changes(layer, side, "choose"):
        y, fitted = a @ weight.T, c @ down.T
        if side == "k":
            y, fitted = _inner(y), _inner(fitted)
        # |y - U_r z_r|^2 = |y|^2 + sum over the first r of z_i^2 - 2 z_i (u_i y), as U has orthonormal columns.
        steps = (fitted.square() - 2 * fitted * (y @ up)).sum(0)
        wrong[1:] += steps.cumsum(0)
        wrong += y.square().sum()
        total += float(y.square().sum())
    errors = (wrong.clamp_min(0) / total).sqrt() if total else torch.zeros_like(wrong)
    return Ranked(up, down, errors)


def measure(weight: Tensor, layer: Layer, side: SideName, delta: Tensor, bias: Tensor | None = None) -> Error:
    """How far off `delta` and `bias` are, on the samples that nothing was fitted to.

    Args:
        weight: The projection's weight [outputs, width], float64.
        layer: The samples.
        side: Which projection it is.
        delta: What is added to the weight, as it will be stored.
        bias: What is added to the projection's output, [outputs].
    """
    error = Error()
    for c, a in changes(layer, side, "measure"):
        live, made = a @ weight.T, c @ delta.double().T
        if bias is not None:
            made = made + bias.double()
        whole = c @ weight.T + live
        if side == "k":
            live, made, whole = _inner(live), _inner(made), _inner(whole)
        error += Error(*(float(part.square().sum()) for part in (live - made, live, whole)))
    return error


def changes(layer: Layer, side: SideName, role: Role) -> Iterator[tuple[Tensor, Tensor]]:
    """(c, a) of each kept sequence, both [tokens, width] in float64."""
    for context in layer.samples(role):
        yield context.double(), layer.chain.change(layer.site, side, context)


def _inner(x: Tensor) -> Tensor:
    """What is left of [tokens, width] after subtracting the mean over the tokens."""
    return x - x.mean(0)


def _regression(ac: Tensor, cc: Tensor, choose: list[tuple[Tensor, Tensor]]) -> Tensor:
    """`ac (cc + ridge)^-1` [width, width] with the ridge whose error on `choose`, pairs of c and a, is least.

    Zero where every ridge does worse than that: what was fitted then holds for the fitted samples alone.
    """
    values, vectors = torch.linalg.eigh(cc)
    projected = ac @ vectors
    contexts, targets = (torch.cat(part) for part in zip(*choose, strict=True))
    turned = contexts @ vectors
    # |targets - turned S projected^T|^2 for diagonal S, without the product for each of them.
    linear = (turned * (targets @ projected)).sum(0)
    square = (turned.T @ turned) * (projected.T @ projected)
    best, least = torch.zeros_like(values), 0.0
    for ridge in RIDGES:
        shrunk = 1 / (values.clamp_min(0) + ridge * float(cc.diagonal().mean()))
        change = float(shrunk @ square @ shrunk - 2 * shrunk @ linear)
        if change < least:
            best, least = shrunk, change
    found: Tensor = (projected * best) @ vectors.T
    return found
