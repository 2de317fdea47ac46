"""Stages that run hypernetworks on a context before its projection.

A stage takes a context [..., width] of any floating dtype and device and returns one of the same kind. Exact stages
compute as the original programs do, module by module in float32. The others agree within the bound that
`hnloader.attention.plans` states. With gradients, under autocast and under torch.compile, every stage computes as an
exact one: autograd keeps what it needs, and the compiler fuses by itself.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.activations import ACTIVATIONS, MIXING
from hnloader.affine import AffineMap
from hnloader.network import Hypernetwork, SequentialSide, Side, SideName

# Contexts that the CPU computes at a time, so that hidden values stay in its cache: 1024 rows of 1280 values are 5 MB.
# Measured on SD 1's widths; 256 rows are slower by up to 5 %.
BLOCK_ROWS = 1024

HALF = (torch.float16, torch.bfloat16)
# Largest error of half precision relative to rounding the exact result; root mean squares. Files with norms reach two
# to three, and a UNet's result is then as close to float32 as with `exact`.
MOST_ERROR = 3


class Link(NamedTuple):
    """A hypernetwork in a chain, with its strength and the options of its attachment."""

    hypernetwork: Hypernetwork
    strength: float
    exact: bool = False
    fold: bool = True


Chain = tuple[Link, ...]


# torch 2.0 lacks it.
_is_compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)


def compiling() -> bool:
    """Return True while torch.compile traces."""
    return _is_compiling()


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the original programs, float32; float64 stays."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def records_gradients(context: Tensor) -> bool:
    """Return True if autograd records the context."""
    return torch.is_grad_enabled() and context.requires_grad


def needs_modules(context: Tensor) -> bool:
    """Return True if the modules themselves must run, for autograd or because autocast decides the dtypes."""
    return records_gradients(context) or autocast_dtype(context.device.type) is not None


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """Return the dtype of autocast on a kind of device, None if it is off."""
    try:
        return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    except RuntimeError:  # a device without autocast
        return None
    except (TypeError, AttributeError):  # torch 2.0 to 2.3 have other functions
        if device_type == "cpu":
            return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def _nothing() -> None:
    """Stand for a weak reference without an object."""


class Stage:
    """One step from a context to the next: `stage(context)`."""

    def __call__(self, context: Tensor) -> Tensor:
        """Return the changed context, of the shape, dtype and device of `context` [..., width]."""
        raise NotImplementedError

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Compute in advance what contexts of this dtype on this device need, since compiled code cannot."""

    @property
    def kept_bytes(self) -> int:
        """Bytes kept beyond the hypernetworks' parameters and copies."""
        return 0


class ExactStage(Stage):
    """A hypernetwork module by module, in float32."""

    def __init__(self, link: Link, side: SideName, width: int) -> None:
        self.hypernetwork = link.hypernetwork
        self.strength = link.strength
        self.side: SideName = side
        self.width = width

    def __call__(self, context: Tensor) -> Tensor:
        """See `Stage`."""
        return self.hypernetwork.transform(self.side, context, self.strength)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """See `Stage.prepare`."""
        if not any(p.requires_grad for p in self.hypernetwork.side(self.width, self.side).parameters()):
            self.hypernetwork.resident(self.width, self.side, _wide(dtype), device)


class LiveStage(ExactStage):
    """A hypernetwork over blocks of contexts, in few passes over memory and without copies between layers."""

    def __init__(self, link: Link, side: SideName, width: int) -> None:
        super().__init__(link, side, width)
        self._dtypes: dict[tuple[torch.device, torch.dtype], torch.dtype] = {}
        # The program of the last place; a weak reference, because releasing the hypernetwork frees it.
        self._last: tuple[object, Callable[[], Program | None]] = (None, _nothing)

    def __call__(self, context: Tensor) -> Tensor:
        """See `Stage`."""
        place = (context.device, context.dtype)
        if compiling():
            return self._compiled(context, place)
        if needs_modules(context):
            return super().__call__(context)
        known, last = self._last
        program = last() if known == place else None
        if program is None:
            program = self._program_at(place)
        if not torch.is_grad_enabled():
            return program(context, self.strength)
        with torch.no_grad():
            return program(context, self.strength)

    def _compiled(self, context: Tensor, place: tuple[torch.device, torch.dtype]) -> Tensor:
        if place not in self._dtypes:
            return super().__call__(context)
        dtype = self._dtypes[place]
        side = self.hypernetwork.resident(self.width, self.side, dtype, context.device)
        changed: Tensor = side(context.to(dtype), self.strength)
        return changed.to(context.dtype)

    def _program_at(self, place: tuple[torch.device, torch.dtype]) -> Program:
        if place not in self._dtypes:
            self.prepare(*place)
        program = self._program(place[0], self._dtypes[place])
        self._last = (place, weakref.ref(program))
        return program

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """See `Stage.prepare`."""
        chosen = _wide(dtype)
        if dtype in HALF and device.type != "meta" and self._rounding(device, dtype).allows(self.strength):
            chosen = dtype
        self._dtypes[device, dtype] = chosen
        self._program(device, chosen)

    def _program(self, device: torch.device, dtype: torch.dtype) -> Program:
        key = ("program", self.width, self.side, device, dtype)
        return self.hypernetwork.derived(key, lambda: Program(self._resident(device, dtype), dtype))

    def _rounding(self, device: torch.device, dtype: torch.dtype) -> Rounding:
        key = ("rounding", self.width, self.side, device, dtype)
        return self.hypernetwork.derived(key, lambda: self._measure(device, dtype))

    def _measure(self, device: torch.device, dtype: torch.dtype) -> Rounding:
        """Measure with temporary copies, since one of them is often not needed later."""
        with torch.inference_mode(False), torch.no_grad():
            stored = self.hypernetwork.side(self.width, self.side)
            exact, low = (copy.deepcopy(stored).to(device=device, dtype=each) for each in (torch.float32, dtype))
            assert isinstance(exact, SequentialSide) and isinstance(low, SequentialSide)
            return measure_rounding(exact, Program(low, dtype), self.width, device, dtype)

    def _resident(self, device: torch.device, dtype: torch.dtype) -> SequentialSide:
        with torch.inference_mode(False), torch.no_grad():
            side = self.hypernetwork.resident(self.width, self.side, dtype, device)
        assert isinstance(side, SequentialSide)
        return side

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_last": (None, _nothing)}


class AffineStage(Stage):
    """A stretch of hypernetworks without activations and norms: one matrix, `x -> x M^T + m`.

    It computes in float32 or float64, because half precision would round away what M adds to the identity.
    """

    def __init__(self, links: Chain, side: SideName, width: int) -> None:
        self.links = links
        self.side: SideName = side
        self.width = width
        self._maps: dict[tuple[torch.device, torch.dtype], AffineMap] = {}

    def __call__(self, context: Tensor) -> Tensor:
        """See `Stage`."""
        if not compiling() and needs_modules(context):
            for link in self.links:
                context = link.hypernetwork.transform(self.side, context, link.strength)
            return context
        dtype = _wide(context.dtype)
        key = (context.device, dtype)
        if key not in self._maps:
            self._maps[key] = stretch_map(self.links, self.side, self.width, dtype, context.device)
        return self._maps[key](context.to(dtype)).to(context.dtype)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """See `Stage.prepare`."""
        dtype = _wide(dtype)
        if (device, dtype) not in self._maps:
            self._maps[device, dtype] = stretch_map(self.links, self.side, self.width, dtype, device)

    @property
    def kept_bytes(self) -> int:
        """Memory of the matrices."""
        return sum(_bytes(each.matrix, each.bias) for each in self._maps.values())

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": {}}


def stretch_map(links: Chain, side: SideName, width: int, dtype: torch.dtype, device: torch.device | str) -> AffineMap:
    """Return affine hypernetworks at their strengths as one map, the identity included."""
    with torch.inference_mode(False), torch.no_grad():
        result: AffineMap | None = None
        for link in links:
            residual = link.hypernetwork.side(width, side).affine_map(dtype, device)
            assert residual is not None, "an affine side has a map"
            step = residual.scaled(link.strength)
            step.matrix.diagonal().add_(1)
            result = step if result is None else result.then(step)
        assert result is not None, "a stretch has a hypernetwork"
        return result


# -- kept results


class CachedStages(Stage):
    """Stages whose result is kept while the same, unchanged context comes in.

    A context is the same if it is the same tensor object at the same version; changes in place raise the version,
    except through `.data` or a numpy view. On the CPU its values are also compared with a copy, once for each call of
    the model. A tensor of inference mode has no version: on the CPU its values are compared at each layer, and on other
    devices, where comparing waits, its result is not kept. All layers of a chain share one object.
    """

    # Contexts with a kept result: two pipelines at once, each with the two halves of its guidance apart.
    LIMIT = 4

    def __init__(self, stages: tuple[Stage, ...]) -> None:
        self.stages = stages
        self._results: dict[int, _Kept] = {}  # by the id of the context, the latest used last

    def __call__(self, context: Tensor) -> Tensor:
        """See `Stage`."""
        if compiling() or records_gradients(context) or not _keepable(context):
            return self._compute(context)
        key = id(context)
        kept = self._results.get(key)
        if kept is None or not kept.serves(context):
            kept = _Kept(context, self._compute(context), self._results)
        elif next(reversed(self._results), None) == key:  # as in all layers except the first
            return kept.result
        self._results.pop(key, None)
        self._results[key] = kept
        for old in list(self._results)[: -self.LIMIT]:
            self._results.pop(old, None)
        return kept.result

    def compare_again(self) -> None:
        """Compare each kept result with its context at its next use, because a call of the model begins."""
        for kept in list(self._results.values()):
            kept.compared = False

    def _compute(self, context: Tensor) -> Tensor:
        for stage in self.stages:
            context = stage(context)
        return context

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """See `Stage.prepare`."""
        for stage in self.stages:
            stage.prepare(device, dtype)

    @property
    def kept_bytes(self) -> int:
        """Memory of the kept results and the stages."""
        return sum(kept.bytes for kept in list(self._results.values())) + sum(s.kept_bytes for s in self.stages)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_results": {}}


def _keepable(context: Tensor) -> bool:
    return type(context) in (Tensor, nn.Parameter) and (not context.is_inference() or context.device.type == "cpu")


class _Kept:
    """A result, and the state of the context that it belongs to."""

    def __init__(self, context: Tensor, result: Tensor, home: dict[int, _Kept]) -> None:
        key = id(context)
        # The result is dropped with the context.
        self._context = weakref.ref(context, lambda _: home.pop(key, None))
        self._state = _state(context)
        self._values = context.detach().clone() if context.device.type == "cpu" else None
        self.compared = not context.is_inference()
        self._mode = _mode(context)
        self._result_state = _state(result)
        self.result = result

    def serves(self, context: Tensor) -> bool:
        """Return True if the result belongs to the present values of this context."""
        if self._context() is not context or self._state != _state(context):
            return False
        if self._mode != _mode(context) or self._result_state != _state(self.result):
            return False
        if self._values is None or self.compared:
            return True
        self.compared = not context.is_inference()
        return torch.equal(self._values, context)

    @property
    def bytes(self) -> int:
        """Memory of the result and the copy of the context."""
        return _bytes(self.result) + (0 if self._values is None else _bytes(self._values))


def _state(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.dtype, None if tensor.is_inference() else tensor._version


def _mode(context: Tensor) -> tuple[object, ...]:
    """Return the modes that the result depends on."""
    return torch.is_inference_mode_enabled(), autocast_dtype(context.device.type)


# -- a side as a program over blocks of rows


class _Layer:
    """A Linear and the modules after it; attributes are faster than lookups in a module."""

    def __init__(self, linear: nn.Linear) -> None:
        self.weight, self.transposed, self.bias = linear.weight, linear.weight.t(), linear.bias
        self.after: list[Callable[[Tensor], Tensor]] = []

    def finish(self, x: Tensor) -> Tensor:
        for each in self.after:
            x = each(x)
        return x


# Modules that compute each value separately.
_ELEMENTWISE = frozenset(ACTIVATIONS.values()) - frozenset(MIXING)


def by_rows(side: Side) -> bool:
    """Return True if a side computes each context separately, with modules that a `Program` knows.

    Softmax and its variants choose a dimension from the shape of their input, and a PReLU with several slopes has one
    for each token. Such a side depends on the neighbors of a context.
    """
    if type(side) is not SequentialSide:  # a subclass may compute anything
        return False
    modules = list(side.linear)
    return bool(modules) and isinstance(modules[0], nn.Linear) and all(_by_rows(module) for module in modules)


def _by_rows(module: nn.Module) -> bool:
    kind = type(module)
    if isinstance(module, nn.Linear):
        return kind is nn.Linear and module.bias is not None
    if isinstance(module, nn.LayerNorm):
        return kind is nn.LayerNorm and len(module.normalized_shape) == 1
    if isinstance(module, nn.PReLU):
        return kind is nn.PReLU and module.weight.numel() == 1
    return kind is nn.Dropout or kind in _ELEMENTWISE


class Program:
    """`x + strength * residual(x)` of a sequential side, without gradients.

    Activations act in place if torch can. Strength, last bias and the sum are part of the last matrix product, which
    adds to its output. On the CPU, with more than one block of contexts, all blocks share the buffers of the layers.
    Otherwise it makes as few calls as possible, because a GPU often waits for them.

    Args:
        side: The side, with its parameters in `dtype` on the device of the contexts. They are not copied.
        dtype: Dtype of the computation.
    """

    def __init__(self, side: SequentialSide, dtype: torch.dtype) -> None:
        self.dtype = dtype
        with torch.no_grad():
            *self.layers, self.last = _layers(side.linear)

    def __call__(self, context: Tensor, strength: float) -> Tensor:
        """Return the changed `context` [..., width], in its dtype. Call it with gradients off."""
        rows = context.reshape(-1, context.shape[-1])
        if context.dtype != self.dtype:
            rows = rows.to(self.dtype)
        if rows.shape[0] > BLOCK_ROWS and rows.device.type == "cpu":
            result = self._by_blocks(rows, strength)
        else:
            hidden = rows
            for layer in self.layers:
                hidden = layer.finish(functional.linear(hidden, layer.weight, layer.bias))
            result = self._sum(rows, hidden, strength)
        result = result.view(context.shape)
        return result if context.dtype == self.dtype else result.to(context.dtype)

    def _by_blocks(self, rows: Tensor, strength: float) -> Tensor:
        result = torch.empty_like(rows, memory_format=torch.contiguous_format)
        buffers = [rows.new_empty(BLOCK_ROWS, len(layer.bias)) for layer in self.layers]
        for start in range(0, len(rows), BLOCK_ROWS):
            hidden = block = rows[start : start + BLOCK_ROWS]
            for layer, buffer in zip(self.layers, buffers, strict=True):
                out = buffer[: len(block)]
                torch.addmm(layer.bias, hidden, layer.transposed, out=out)
                hidden = layer.finish(out)
            self._sum(block, hidden, strength, result[start : start + BLOCK_ROWS])
        return result

    def _sum(self, rows: Tensor, hidden: Tensor, strength: float, out: Tensor | None = None) -> Tensor:
        """Add the last layer, times the strength, to the contexts."""
        last = self.last
        if last.after:
            residual = last.finish(functional.linear(hidden, last.weight, last.bias))
            return torch.add(rows, residual, alpha=strength, out=out)
        result = torch.add(rows, last.bias, alpha=strength, out=out)
        return result.addmm_(hidden, last.transposed, alpha=strength)


def _layers(modules: nn.Sequential) -> list[_Layer]:
    layers: list[_Layer] = []
    for module in modules:
        if isinstance(module, nn.Linear):
            layers.append(_Layer(module))
        elif not isinstance(module, nn.Dropout):
            # `forward` skips the hooks, which these copies do not have.
            layers[-1].after.append(_in_place(module).forward)
    return layers


def _in_place(module: nn.Module) -> nn.Module:
    """Return a module that acts in place if it can, with the same parameters."""
    if not hasattr(module, "inplace"):
        return module
    twin = copy.copy(module)
    twin.__dict__["inplace"] = True
    return twin


@dataclass(frozen=True)
class Rounding:
    """The error of a side in half precision; means of squares over contexts of unit variance.

    Attributes:
        excess: Error of the residual at strength 1, beyond the error of rounding the result.
        relative: Error of rounding the result, relative to the square of the result.
        residual: Square of the residual.
        finite: True if contexts 16 times as large do not overflow.
    """

    excess: float
    relative: float
    residual: float
    finite: bool

    def allows(self, strength: float) -> bool:
        """Return True if the error is at most `MOST_ERROR` times the error of rounding the exact result."""
        rounding = self.relative * (1 + strength**2 * self.residual)
        return self.finite and strength**2 * self.excess <= (MOST_ERROR**2 - 1) * rounding


def measure_rounding(
    exact: SequentialSide, low: Program, width: int, device: torch.device, dtype: torch.dtype
) -> Rounding:
    """Compute 32 contexts in both ways: `exact` in float32 and `low` in `dtype`, both on `device`."""
    x = torch.randn(32, width, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    residual = exact.residual(x.float())
    result = x.float() + residual
    rounding = (result.to(dtype).float() - result).square().mean()
    error = (low(x, 1.0).float() - result).square().mean()
    finite = low(x * 16, 1.0).isfinite().all()
    return Rounding(
        excess=max(float(error - rounding), 0.0),
        relative=float(rounding / result.square().mean()),
        residual=float(residual.square().mean()),
        finite=bool(finite),
    )


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
