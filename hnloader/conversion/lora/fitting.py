"""Fit weights to the effect of hypernetworks on one projection of an attention layer.

With c the context and a(c) the addition of the chain to it, the output of the projection changes by y = W a(c). A
vector that is added to all keys of a sequence leaves attention unchanged: it shifts all logits of a query alike, and
the softmax ignores that. So keys are fitted and measured after subtracting their mean over the tokens of each sequence.
For values, W times the constant part b of a(c) = A c + b reaches the output of the layer unchanged, because attention
weights sum to 1. The bias of the output projection can carry it, or the weight, as far as the contexts allow.

The map of rank r that is closest to c -> M c, in the mean over contexts of second moment C, is U_r U_r^T M. U are the
left singular vectors of M C^(1/2). This is reduced-rank regression (A. J. Izenman, Reduced-rank regression for the
multivariate linear model, Journal of Multivariate Analysis 5, 1975). A plain SVD of M is the case C = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from hnloader.affine import AffineMap
from hnloader.conversion.lora.context_samples import Layer, Role
from hnloader.network import SideName

__all__ = ["Error", "Ranked", "changes", "fit_context_map", "measure", "rank_directions"]

# Candidates, as multiples of the mean of C's diagonal. The "validation" samples decide.
RIDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# Added to C's diagonal to rank unseen directions last.
_UNSEEN = 1e-6
# A change below this share of the squares of the whole is rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Error:
    """Sums of squares: of the error, of the change to represent, and of the whole output with that change."""

    wrong: float = 0.0
    change: float = 0.0
    whole: float = 0.0

    def __add__(self, other: Error) -> Error:
        return Error(self.wrong + other.wrong, self.change + other.change, self.whole + other.whole)

    @property
    def of_change(self) -> float:
        """The error relative to the change; doing nothing has the error 1."""
        return (self.wrong / self.change) ** 0.5 if self.change > _ROUNDING * self.whole else 0.0

    @property
    def of_whole(self) -> float:
        """The error relative to the keys or values themselves."""
        return (self.wrong / self.whole) ** 0.5 if self.whole else 0.0


@dataclass(frozen=True)
class Ranked:
    """Directions of the change of a projection, the most important first.

    Attributes:
        up: Orthonormal columns [outputs, n].
        down: `up^T M` [n, inputs]. The product of the first r columns and rows is the best map of rank r.
        errors: Error relative to the change on the "validation" samples, at the ranks 0 to n.
    """

    up: Tensor
    down: Tensor
    errors: Tensor

    def rank_for(self, error: float) -> int:
        """Return the least rank from 1 whose error is at most this.

        If none is, the change is nonlinear. Then take the least rank that adds little to the unavoidable error.
        """
        floor = float(self.errors.min())
        allowed = max(error, (floor**2 + (error / 2) ** 2) ** 0.5)
        return max(1, int((self.errors <= allowed).nonzero()[0]))


def fit_context_map(layer: Layer, side: SideName, *, with_bias: bool) -> AffineMap:
    """Return the map of contexts, in float64, that is closest to the addition of the chain.

    The map of an affine chain is exact. Other chains, and the constant of values that a bias cannot hold, are fitted by
    least squares, with the ridge that is best on the "validation" samples.

    Args:
        layer: The samples.
        side: The projection. Keys are fitted up to a constant, which attention ignores.
        with_bias: Values may have a bias. Otherwise the bias for "v" is 0.
    """
    moments = layer.moments
    exact = layer.chain.affine(layer.site, side)
    if exact is not None and (with_bias or side == "k" or not exact.bias.any()):
        return exact
    validation = list(changes(layer, side, "validation"))
    if side == "k":
        inner = [(_inner(c), _inner(a)) for c, a in validation]
        matrix = _regression(moments.inner_ac[side], moments.inner_cc, inner)
        return AffineMap(matrix, matrix.new_zeros(len(matrix)))
    if exact is not None:
        rest = [(c, exact.bias.expand_as(c)) for c, _ in validation]
        matrix = exact.matrix + _regression(torch.outer(exact.bias, moments.c), moments.cc, rest)
        return AffineMap(matrix, torch.zeros_like(exact.bias))
    if not with_bias:
        matrix = _regression(moments.ac[side], moments.cc, validation)
        return AffineMap(matrix, matrix.new_zeros(len(matrix)))
    mean, mean_a = moments.c / moments.count, moments.a[side] / moments.count
    around = [(c - mean, a - mean_a) for c, a in validation]
    ac = moments.ac[side] - torch.outer(moments.a[side], mean)
    matrix = _regression(ac, moments.cc - torch.outer(moments.c, mean), around)
    return AffineMap(matrix, mean_a - matrix @ mean)


def rank_directions(weight: Tensor, matrix: Tensor, layer: Layer, side: SideName, *, plain: bool = False) -> Ranked:
    """Order the directions of the change of a projection by their effect on the sampled contexts.

    Args:
        weight: Weight W of the projection [outputs, width], float64.
        matrix: Context map A [width, width]; the change to approximate is W A.
        layer: The samples.
        side: The projection.
        plain: Use a plain SVD of W A, as if all contexts were equally likely; a baseline. Default: False.
    """
    change = weight @ matrix
    weighted = change
    moment = layer.moments.inner_cc if side == "k" else layer.moments.cc
    unseen = _UNSEEN * moment.diagonal().mean()
    # A layer that sees a single token, as self-attention at the smallest size may, ignores its key.
    if not plain and unseen > 0:
        root = torch.linalg.cholesky(moment + unseen * torch.eye(len(moment), dtype=moment.dtype))
        weighted = change @ root
    up = torch.linalg.svd(weighted, full_matrices=False).U
    down = up.T @ change
    wrong, total = torch.zeros(up.shape[1] + 1, dtype=torch.float64), 0.0
    for c, a in changes(layer, side, "validation"):
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
    """Measure the error of `delta` and `bias` on the samples that the fit never saw.

    Args:
        weight: Weight of the projection [outputs, width], float64.
        layer: The samples.
        side: The projection.
        delta: Addition to the weight [outputs, width], as stored.
        bias: Addition to the output of the projection [outputs]. Default: None.
    """
    error = Error()
    for c, a in changes(layer, side, "test"):
        live, made = a @ weight.T, c @ delta.double().T
        if bias is not None:
            made = made + bias.double()
        whole = c @ weight.T + live
        if side == "k":
            live, made, whole = _inner(live), _inner(made), _inner(whole)
        error += Error(*(float(part.square().sum()) for part in (live - made, live, whole)))
    return error


def changes(layer: Layer, side: SideName, role: Role) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (c, a) of each kept sequence, both [tokens, width] in float64."""
    for context in layer.samples(role):
        yield context.double(), layer.chain.change(layer.site, side, context)


def _inner(x: Tensor) -> Tensor:
    """Subtract the mean over the tokens from [tokens, width]."""
    return x - x.mean(0)


def _regression(ac: Tensor, cc: Tensor, validation: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return `ac (cc + ridge)^-1` [width, width] with the ridge of least error on `validation`, pairs of c and a.

    Return zero if every ridge is worse than that: the fit does not generalize then.
    """
    values, vectors = torch.linalg.eigh(cc)
    projected = ac @ vectors
    contexts, targets = (torch.cat(part) for part in zip(*validation, strict=True))
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
