"""Stages that run hypernetworks on a context before its projection.

A stage takes a context [..., width] of any floating dtype and device and returns one of the same kind. Exact stages
compute as the original programs do, module by module in float32. The others agree within the bound that
`hnloader.attention.plan` states. With gradients, under autocast and under torch.compile, every stage computes as an
exact one: autograd keeps what it needs, and the compiler fuses by itself.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hnloader.affine import AffineMap
from hnloader.attention.kernels import HALF, Program, Rounding, measure_rounding, wide
from hnloader.attention.token_masks import TokenMask
from hnloader.network import Hypernetwork, SequentialSide, Side, SideName
from hnloader.scopes import Scope


class Link(NamedTuple):
    """A hypernetwork in a chain: the scope of the sides that act, its strength and the options of its attachment.

    With a mask, it acts on some tokens of a call only.
    """

    hypernetwork: Hypernetwork
    scope: Scope
    strength: float
    exact: bool = False
    fold: bool = True
    mask: TokenMask | None = None

    def side(self, side: SideName) -> Side:
        """Return the side that acts, as stored."""
        return self.hypernetwork.side(self.scope, side)


Chain = tuple[Link, ...]
Place = tuple[torch.device, torch.dtype]

# Return True while torch.compile traces; torch 2.0 lacks it.
compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", lambda: False)


def records_gradients(context: Tensor) -> bool:
    """Return True if autograd records the context."""
    return context.requires_grad and torch.is_grad_enabled()


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


@contextlib.contextmanager
def own_modes(device: torch.device) -> Iterator[None]:
    """Compute something that other calls use too, without the inference mode, gradients and autocast of this one."""
    autocast = autocast_dtype(device.type) is not None
    full = torch.autocast(device.type, enabled=False) if autocast else contextlib.nullcontext()
    with torch.inference_mode(False), torch.no_grad(), full:
        yield


class Stage:
    """One step from a context to the next: `stage(context)`."""

    def __call__(self, context: Tensor) -> Tensor:
        """Return the changed context, of the shape, dtype and device of `context` [..., width]."""
        raise NotImplementedError

    def fast(self, context: Tensor) -> Tensor:
        """Do the same without gradients, autocast and compiler; the caller checks that all are off."""
        return self(context)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Compute in advance what contexts of this dtype on this device need, since compiled code cannot."""

    @property
    def kept_bytes(self) -> int:
        """Bytes kept beyond the hypernetworks' parameters and copies."""
        return 0


_WIDE = (torch.float32, torch.float64)


def _forward(side: Side, rows: Tensor, strength: float) -> Tensor:
    """Compute `Side.forward`, for the usual kind of side without the calls around its modules."""
    if type(side) is not SequentialSide:
        return side.forward(rows, strength)
    residual = rows
    modules: Any = side._modules["linear"]
    for module in modules._modules.values():
        residual = module(residual)
    return rows + residual * strength


class ExactStage(Stage):
    """A hypernetwork module by module, in float32."""

    def __init__(self, link: Link, side: SideName) -> None:
        self.hypernetwork = link.hypernetwork
        self.strength = link.strength
        self.side: SideName = side
        self.scope = link.scope
        # What computes contexts of the last dtype and device; a weak reference, so that a release frees it.
        self._last: Callable[[], Side | None] = lambda: None
        self._last_place: tuple[object, object] = (None, None)
        # For compiled code: a tensor, because a new number would be compiled again.
        self._compiled: tuple[Place, torch.dtype, Side, Tensor] | None = None

    @property
    def stored(self) -> Side:
        """The side as stored."""
        return self.hypernetwork.side(self.scope, self.side)

    def __call__(self, context: Tensor) -> Tensor:
        """See `Stage`."""
        if compiling() and self._compiled is not None and self._compiled[0] == (context.device, context.dtype):
            _, dtype, side, strength = self._compiled
            rows = context.to(dtype)
            return (rows + side.residual(rows) * strength).to(context.dtype)
        return self.hypernetwork.transform(self.side, context, self.strength, self.scope)

    def fast(self, context: Tensor) -> Tensor:
        """See `Stage.fast`."""
        dtype, device = self._last_place
        side = self._last() if context.dtype is dtype and context.device == device else None
        if side is None:
            if any(parameter.requires_grad for parameter in self.stored.parameters()):
                return self(context)
            side = self.hypernetwork.resident(self.scope, self.side, wide(context.dtype), context.device)
            self._last, self._last_place = weakref.ref(side), (context.dtype, context.device)
        rows = context if context.dtype in _WIDE else context.float()
        result = _forward(side, rows, self.strength)
        return result if rows is context else result.to(context.dtype)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """See `Stage.prepare`."""
        self._prepare_in(wide(dtype), device, dtype)

    def _prepare_in(self, chosen: torch.dtype, device: torch.device, dtype: torch.dtype) -> None:
        if any(parameter.requires_grad for parameter in self.stored.parameters()):
            return
        side = self.hypernetwork.resident(self.scope, self.side, chosen, device)
        with torch.inference_mode(False):
            strength = torch.tensor(self.strength, dtype=wide(dtype), device=device)
        self._compiled = ((device, dtype), chosen, side, strength)


class LiveStage(ExactStage):
    """A hypernetwork over blocks of contexts, in few passes over memory and without copies between layers."""

    def __init__(self, link: Link, side: SideName) -> None:
        super().__init__(link, side)
        self._dtypes: dict[Place, torch.dtype] = {}
        self._last_program: Callable[[], Program | None] = lambda: None

    def __call__(self, context: Tensor) -> Tensor:
        """See `Stage`."""
        if compiling() or records_gradients(context) or autocast_dtype(context.device.type) is not None:
            return super().__call__(context)
        with torch.no_grad():
            return self.fast(context)

    def fast(self, context: Tensor) -> Tensor:
        """See `Stage.fast`."""
        dtype, device = self._last_place
        program = self._last_program() if context.dtype is dtype and context.device == device else None
        if program is None:
            program = self._program_at((context.device, context.dtype))
        return program(context, self.strength)

    def _program_at(self, place: Place) -> Program:
        program = self._program(place[0], self._dtype_at(place))
        self._last_program, self._last_place = weakref.ref(program), (place[1], place[0])
        return program

    def _dtype_at(self, place: Place) -> torch.dtype:
        """Return the dtype of the computation for contexts at a place."""
        if place not in self._dtypes:
            device, dtype = place
            low = dtype in HALF and device.type != "meta" and self._rounding(device, dtype).allows(self.strength)
            self._dtypes[place] = dtype if low else wide(dtype)
        return self._dtypes[place]

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """See `Stage.prepare`."""
        chosen = self._dtype_at((device, dtype))
        self._program(device, chosen)
        self._prepare_in(chosen, device, dtype)

    def _program(self, device: torch.device, dtype: torch.dtype) -> Program:
        key = ("program", self.scope, self.side, device, dtype)
        return self.hypernetwork.derived(key, lambda: Program(self._resident(device, dtype), dtype))

    def _rounding(self, device: torch.device, dtype: torch.dtype) -> Rounding:
        key = ("rounding", self.scope, self.side, device, dtype)
        return self.hypernetwork.derived(key, lambda: self._measure(device, dtype))

    def _measure(self, device: torch.device, dtype: torch.dtype) -> Rounding:
        """Measure with temporary copies, since one of them is often not needed later."""
        with own_modes(device):
            exact, low = (copy.deepcopy(self.stored).to(device=device, dtype=each) for each in (torch.float32, dtype))
            assert isinstance(exact, SequentialSide) and isinstance(low, SequentialSide)
            return measure_rounding(exact, Program(low, dtype), self.scope.width, device, dtype)

    def _resident(self, device: torch.device, dtype: torch.dtype) -> SequentialSide:
        with torch.inference_mode(False), torch.no_grad():
            side = self.hypernetwork.resident(self.scope, self.side, dtype, device)
        assert isinstance(side, SequentialSide)
        return side


class MaskedStage(Stage):
    """A hypernetwork that acts on some tokens of a call."""

    def __init__(self, stage: ExactStage, mask: TokenMask) -> None:
        self.stage, self._mask = stage, mask

    def __call__(self, context: Tensor) -> Tensor:
        """See `Stage`."""
        mask: Any = self._mask.last if compiling() else self._mask.present()
        return torch.where(mask.to(context.device), self.stage(context), context)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """See `Stage.prepare`."""
        self.stage.prepare(device, dtype)


class AffineStage(Stage):
    """A stretch of hypernetworks without activations and norms: one matrix, `x -> x M^T + m`.

    It computes in float32 or float64, because half precision would round away what M adds to the identity.
    """

    def __init__(self, links: Chain, side: SideName) -> None:
        self.links = links
        self.side: SideName = side
        self.width = links[0].scope.width
        self._maps: dict[Place, AffineMap] = {}

    def __call__(self, context: Tensor) -> Tensor:
        """See `Stage`."""
        if not compiling() and (records_gradients(context) or autocast_dtype(context.device.type) is not None):
            for link in self.links:
                context = link.hypernetwork.transform(self.side, context, link.strength, link.scope)
            return context
        return self.fast(context)

    def fast(self, context: Tensor) -> Tensor:
        """See `Stage.fast`."""
        dtype = wide(context.dtype)
        map_ = self._maps.get((context.device, dtype))
        if map_ is None:
            self.prepare(context.device, dtype)
            map_ = self._maps[context.device, dtype]
        return map_(context.to(dtype)).to(context.dtype)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """See `Stage.prepare`."""
        dtype = wide(dtype)
        if (device, dtype) not in self._maps:
            self._maps[device, dtype] = stretch_map(self.links, self.side, dtype, device)

    @property
    def kept_bytes(self) -> int:
        """Memory of the matrices."""
        return sum(tensor_bytes(each.matrix, each.bias) for each in self._maps.values())


def stretch_map(links: Chain, side: SideName, dtype: torch.dtype, device: torch.device | str) -> AffineMap:
    """Return affine hypernetworks at their strengths as one map, the identity included."""
    with own_modes(torch.device(device)):
        result: AffineMap | None = None
        for link in links:
            residual = link.side(side).affine_map(dtype, device)
            assert residual is not None, "an affine side has a map"
            step = residual.scaled(link.strength)
            step.matrix.diagonal().add_(1)
            result = step if result is None else result.then(step)
        assert result is not None, "a stretch has a hypernetwork"
        return result


def tensor_bytes(*tensors: Tensor) -> int:
    """Return the memory of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
