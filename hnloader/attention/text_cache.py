"""Keep what layers compute from a text, while the same text comes in.

A text is the same if it is the same tensor object at the same version; changes in place raise the version, except
through `.data` or a numpy view. On the CPU its values are also compared with a copy, once for each call of the model.
There, a new tensor with the values of a kept text is the same text. A tensor of inference mode has no version: on the
CPU its values are compared at each use, and on other devices, where comparing waits, nothing is kept. If no program
changes texts during calls, its values are compared once for each call, and on other devices it is kept for one call.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hnloader.attention.stages import autocast_dtype, tensor_bytes

# A tensor and its version, to notice changes by its user.
Versioned = tuple[Tensor, int]


class Text:
    """A text and what was computed from it.

    Attributes:
        context: The text's tensor in the present call, None before its first use there.
        version: Version of `context`, None if nothing changes it during this call.
        changed: The contexts of plans and their versions, by plan.
        results: Keys or values and their versions, by the number of their projection.
    """

    __slots__ = (
        "_autocast",
        "_reference",
        "_state",
        "_values",
        "changed",
        "checked",
        "context",
        "results",
        "used",
        "version",
    )

    def __init__(self, count: int, autocast: torch.dtype | None) -> None:
        self.context: Tensor | None = None
        self.version: int | None = 0
        self.changed: dict[object, Versioned] = {}
        self.results: list[Versioned | None] = [None] * count
        self.checked = self.used = False
        self._autocast = autocast
        self._reference: Callable[[], Tensor | None] = lambda: None
        self._state: tuple[object, ...] = ()
        self._values: Tensor | None = None

    def bind(self, context: Tensor, home: dict[int, Text]) -> None:
        """Belong to a tensor from now on; on other devices than the CPU, leave `home` with the tensor."""
        key = id(context)
        at_once = context.device.type != "cpu"
        self._reference = weakref.ref(context, (lambda _: home.pop(key, None)) if at_once else None)
        self._state = _state(context)
        if self._values is None and context.device.type == "cpu":
            self._values = context.detach().clone()
        self.checked = True

    def serves(self, context: Tensor, autocast: torch.dtype | None) -> bool:
        """Return True if it belongs to the present values of a tensor."""
        if self._reference() is not context or self._autocast != autocast or self._state != _state(context):
            return False
        return self._values is None or self._confirms(context)

    def _confirms(self, context: Tensor) -> bool:
        if self.checked and not context.is_inference():
            return True
        self.checked = True
        assert self._values is not None
        return torch.equal(self._values, context)

    def equals(self, context: Tensor, autocast: torch.dtype | None) -> bool:
        """Return True if a tensor on the CPU has the same values."""
        values = self._values
        return (
            values is not None
            and self._autocast == autocast
            and context.device.type == "cpu"
            and values.dtype == context.dtype
            and torch.equal(values, context)
        )

    @property
    def lasting(self) -> bool:
        """False if the next call cannot tell whether its tensor changed: one of inference mode on another device."""
        return self._values is not None or self._state[-1] is not None

    @property
    def alive(self) -> bool:
        """True if the tensor exists."""
        return self._reference() is not None

    @property
    def bytes(self) -> int:
        """Memory of everything that is kept for it."""
        kept = [each[0] for each in (*self.changed.values(), *self.results) if each is not None]
        return tensor_bytes(*kept, *([] if self._values is None else [self._values]))


_NONE = Text(0, None)


class TextCache:
    """The texts of a model.

    Args:
        count: Number of projections with results.
        steady: No program changes a text in place during a call.

    Attributes:
        current: The text that the layers of the present call use.
        keeps: True during calls whose results may be kept.
    """

    # Two pipelines at once, each with the two halves of its guidance apart.
    LIMIT = 4

    def __init__(self, count: int, *, steady: bool = False) -> None:
        self.current = _NONE
        self.keeps = False
        self._steady = steady
        self._count = count
        self._texts: dict[int, Text] = {}  # by the id of the tensor, the latest used last

    def begin(self, *, keep: bool) -> None:
        """Begin a call of the model; `keep` is False if nothing may be kept now."""
        self.keeps = keep
        self.current = _NONE
        for text in list(self._texts.values()):
            text.checked = text.used = False

    def end(self) -> None:
        """End a call of the model: hold no tensor of the caller, and no text that is gone and was not used."""
        self.current, self.keeps = _NONE, False
        for key, text in list(self._texts.items()):
            text.context = None
            if not text.lasting or not (text.alive or text.used):
                self._texts.pop(key, None)

    def find(self, context: Tensor) -> Text | None:
        """Return the text of a tensor, a new one if necessary; None if nothing may be kept for it."""
        if not self.keeps or type(context) not in (Tensor, nn.Parameter):
            return None
        inference = context.is_inference()
        if inference and not self._steady and context.device.type != "cpu":
            return None
        autocast = autocast_dtype(context.device.type)
        text = self._texts.get(id(context))
        known = text is not None and text.context is context and text.version is None and autocast is None
        if text is None or not (known or text.serves(context, autocast)):
            text = self._of_equal(context, autocast) or Text(self._count, autocast)
            text.bind(context, self._texts)
        self._put(id(context), text)
        text.used = True
        if autocast is None and (self._steady or not inference):
            text.version = None if inference else context._version
            text.context = context
            self.current = text
        return text

    def _of_equal(self, context: Tensor, autocast: torch.dtype | None) -> Text | None:
        """Return the kept text with the values of a new tensor, if its own tensor is gone or has other values now."""
        for key, text in list(self._texts.items()):
            if text.equals(context, autocast):
                if not text.alive:
                    self._texts.pop(key, None)
                return text
        return None

    def _put(self, key: int, text: Text) -> None:
        self._texts.pop(key, None)
        self._texts[key] = text
        for old in list(self._texts)[: -self.LIMIT]:
            self._texts.pop(old, None)

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def bytes(self) -> int:
        """Memory of everything that is kept."""
        return sum(text.bytes for text in set(self._texts.values()))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "current": _NONE, "_texts": {}}


def _state(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.dtype, None if tensor.is_inference() else tensor._version
