"""What runs on a context before a projection: hypernetworks one after the other, each as cheaply as is exact.

A stage takes a context [..., width] of any floating dtype and device and returns one of the same. `exact` stages
compute as the original programs do, module by module in float32; the others give the same within the bound that
`hnloader.attention.plans` states. Where gradients are recorded, under autocast, and in what torch.compile traces,
every stage computes as the exact one: autograd keeps what it needs, and the compiler fuses by itself.
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

# Contexts that the processor computes at a time, so that what lies between two layers stays in its cache: 1024
# rows of 1280 hidden values are 5 MB. Measured on SD 1's widths; 256 rows are slower by up to 5 %.
BLOCK_ROWS = 1024

HALF = (torch.float16, torch.bfloat16)
# What half precision may do to a context, to what rounding the exact one to it does; root mean squares. Files with
# norms come to between two and three, and a UNet's result is then no further from that in float32 than with `exact`.
MOST_ERROR = 3


class Link(NamedTuple):
    """A hypernetwork in a chain, with its strength there and what was allowed when it was attached."""

    hypernetwork: Hypernetwork
    strength: float
    exact: bool = False
    fold: bool = True


Chain = tuple[Link, ...]


# torch 2.0 has no such question.
_is_compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)


def compiling() -> bool:
    """Whether torch.compile is tracing."""
    return _is_compiling()


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What the original programs would compute in; float64 stays."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def records_gradients(context: Tensor) -> bool:
    """Whether what is computed from a context is to be differentiated."""
    return torch.is_grad_enabled() and context.requires_grad


def needs_modules(context: Tensor) -> bool:
    """Whether gradients are recorded or autocast decides the dtypes: then the modules themselves must run."""
    return records_gradients(context) or autocast_dtype(context.device.type) is not None


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """What autocast computes in on a kind of device, None where it is off."""
    try:
        return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    except RuntimeError:  # a device that has no autocast
        return None
    except (TypeError, AttributeError):  # torch 2.0 to 2.3 ask for each kind of device in another way
        if device_type == "cpu":
            return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
        return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def _nothing() -> None:
    """In the place of a reference to something that is gone."""


class Stage:
    """One step from a context to the next: `stage(context)`."""

    def __call__(self, context: Tensor) -> Tensor:
        """The changed context, of the shape, dtype and device of `context` [..., width]."""
        raise NotImplementedError

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Make what contexts of this dtype on this device need, which code that is being compiled cannot make."""

    @property
    def kept_bytes(self) -> int:
        """Bytes kept beyond the hypernetworks' own parameters and copies."""
        return 0


class ExactStage(Stage):
    """A hypernetwork as it is written, in float32."""

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
    """The same, with the layers run over blocks of contexts, in few passes over memory and no copies between."""

    def __init__(self, link: Link, side: SideName, width: int) -> None:
        super().__init__(link, side, width)
        self._dtypes: dict[tuple[torch.device, torch.dtype], torch.dtype] = {}
        # The program of the last place. It goes when the hypernetwork is released, so it is not held here.
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
        """Tried with copies that are not kept, since it may turn out that one of them is not needed."""
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

    In float32 or float64; contexts in half precision are computed in float32, so that what M adds to the identity
    is not rounded away.
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
        """What the matrices take."""
        return sum(_bytes(each.matrix, each.bias) for each in self._maps.values())

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": {}}


def stretch_map(links: Chain, side: SideName, width: int, dtype: torch.dtype, device: torch.device | str) -> AffineMap:
    """Affine hypernetworks one after the other, at their strengths, as one map; the identity is part of it."""
    with torch.inference_mode(False), torch.no_grad():
        result: AffineMap | None = None
        for link in links:
            residual = link.hypernetwork.side(width, side).affine_map(dtype, device)
            assert residual is not None, "only affine sides have a map"
            step = residual.scaled(link.strength)
            step.matrix.diagonal().add_(1)
            result = step if result is None else result.then(step)
        assert result is not None, "a stretch has at least one hypernetwork"
        return result


# -- results that are kept as long as the context is the same


class CachedStages(Stage):
    """Stages whose result is kept for as long as the same, unchanged context comes in.

    The same means the same tensor object at the same version, which in-place changes raise but for those through
    `.data` or a numpy view; a tensor that took the place of a freed one is another object. On the CPU the values are
    compared with a kept copy as well, once for each call of the model. A tensor of inference mode has no version: on
    the CPU its values are compared at each layer, elsewhere nothing is kept for it, since comparing would wait for the
    device. One object serves all layers of a chain, so that a context is computed once for all of them.
    """

    # Contexts for which a result is kept: two pipelines at once, each with the two halves of its guidance apart.
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
        elif next(reversed(self._results), None) == key:  # as in all layers but the first
            return kept.result
        self._results.pop(key, None)
        self._results[key] = kept
        for old in list(self._results)[: -self.LIMIT]:
            self._results.pop(old, None)
        return kept.result

    def compare_again(self) -> None:
        """Have each kept result compared with its context when it is used next: a call of the model begins."""
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
        """What the kept results and the stages take."""
        return sum(kept.bytes for kept in list(self._results.values())) + sum(s.kept_bytes for s in self.stages)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_results": {}}


def _keepable(context: Tensor) -> bool:
    return type(context) in (Tensor, nn.Parameter) and (not context.is_inference() or context.device.type == "cpu")


class _Kept:
    """A result, and what says whether it is still that of a context."""

    def __init__(self, context: Tensor, result: Tensor, home: dict[int, _Kept]) -> None:
        key = id(context)
        # The results go with the context, and nothing here keeps it alive.
        self._context = weakref.ref(context, lambda _: home.pop(key, None))
        self._state = _state(context)
        self._values = context.detach().clone() if context.device.type == "cpu" else None
        self.compared = not context.is_inference()
        self._mode = _mode(context)
        self._result_state = _state(result)
        self.result = result

    def serves(self, context: Tensor) -> bool:
        """Whether the result is what this context would give now."""
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
        """What is kept for it."""
        return _bytes(self.result) + (0 if self._values is None else _bytes(self._values))


def _state(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.dtype, None if tensor.is_inference() else tensor._version


def _mode(context: Tensor) -> tuple[object, ...]:
    """What else the result depends on, or who may use it."""
    return torch.is_inference_mode_enabled(), autocast_dtype(context.device.type)


# -- a side as a program over blocks of rows


class _Layer:
    """A Linear and the modules that follow it; its tensors at hand, since a lookup in a module takes a while."""

    def __init__(self, linear: nn.Linear) -> None:
        self.weight, self.transposed, self.bias = linear.weight, linear.weight.t(), linear.bias
        self.after: list[Callable[[Tensor], Tensor]] = []

    def finish(self, x: Tensor) -> Tensor:
        for each in self.after:
            x = each(x)
        return x


# Modules that compute each value by itself.
_ELEMENTWISE = frozenset(ACTIVATIONS.values()) - frozenset(MIXING)


def by_rows(side: Side) -> bool:
    """Return True if a side computes each context by itself, with modules that a `Program` knows.

    Softmax and its relatives choose a dimension from the shape of their input, and a PReLU of several slopes has one
    for each token: what such a side computes depends on the contexts beside each one and on their shape.
    """
    if type(side) is not SequentialSide:  # a subclass may compute anything, of modules as well
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

    Activations act in place where torch can; strength, last bias and the sum are part of the last matrix product,
    which adds to its output. On the processor, where there are more contexts than one block, each layer writes into a
    buffer that the next block uses again. Else there are as few calls as can be: a graphics card often waits for them.

    Args:
        side: The side, with its parameters in `dtype` on the device of the contexts. They are used as they are,
            not copied; it is of no use any more when one is replaced.
        dtype: What is computed in.
    """

    def __init__(self, side: SequentialSide, dtype: torch.dtype) -> None:
        self.dtype = dtype
        with torch.no_grad():
            *self.layers, self.last = _layers(side.linear)

    def __call__(self, context: Tensor, strength: float) -> Tensor:
        """`context` [..., width] of any dtype; the result has its dtype. To be called where gradients are off."""
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
        """The last layer, times the strength, and the contexts."""
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
            # Not by `module(x)`: nobody has hooks on what is ours.
            layers[-1].after.append(_in_place(module).forward)
    return layers


def _in_place(module: nn.Module) -> nn.Module:
    """The module, acting in place if it can; parameters are shared."""
    if not hasattr(module, "inplace"):
        return module
    twin = copy.copy(module)
    twin.__dict__["inplace"] = True
    return twin


@dataclass(frozen=True)
class Rounding:
    """What half precision does to a side; means of squares over contexts of unit variance.

    Attributes:
        excess: Error of the residual at strength 1, beyond that of rounding the result.
        relative: Error of rounding the result, by the square of the result.
        residual: The residual's own square.
        finite: Contexts 16 times as large overflow nowhere.
    """

    excess: float
    relative: float
    residual: float
    finite: bool

    def allows(self, strength: float) -> bool:
        """Whether the error is at most `MOST_ERROR` times that which the exact result has when it is rounded."""
        rounding = self.relative * (1 + strength**2 * self.residual)
        return self.finite and strength**2 * self.excess <= (MOST_ERROR**2 - 1) * rounding


def measure_rounding(
    exact: SequentialSide, low: Program, width: int, device: torch.device, dtype: torch.dtype
) -> Rounding:
    """Compute 32 contexts both ways; `exact` in float32 and `low` in `dtype`, both on `device`."""
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
