"""Read a pickle as plain data. Nothing in it is ever called, imported or built.

A `.pt` file is a pickle: a program for a small stack machine that may import any module and call anything in it. This
reader runs that program symbolically. Numbers, strings and containers become themselves. A reference to a global
becomes a `Symbol` if its meaning is known here, otherwise an `Opaque`. A call of a symbol gives its result, made here
from plain data; any other call is noted in `Pickle.refused`, and the caller decides what to do with the file.

The opcodes are those of Python's pickle protocols 0 to 5 (Lib/pickletools.py documents each).
"""

from __future__ import annotations

import codecs
import functools
import math
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from hnloader.formats.known_globals import CALLED, KNOWN, Global, joined, may_be_called
from hnloader.formats.numpy_parts import NumpyArray, NumpyType, scalar
from hnloader.texts import shown

__all__ = [
    "PLAIN",
    "STORAGE_DTYPES",
    "Blob",
    "MalformedPickleError",
    "Opaque",
    "Parameters",
    "Pickle",
    "Refusal",
    "StorageRef",
    "Symbol",
    "TensorRef",
    "has_chosen_hash",
    "item_size",
    "read_pickle",
]

# Limits. The pickle of a hypernetwork has about 2,000 opcodes in 10 kB; a full SDXL checkpoint, which is read only to
# identify it, about 100,000 in 500 kB. An opcode of one byte makes up to 216 bytes (an empty set), so these limits
# bound the memory as well as the time.
MAX_PICKLE_SIZE = 16 << 20
MAX_OPCODES = 500_000
MAX_DEPTH = 64
MAX_VALUES = 500_000
MAX_INT_BYTES = 32
# Characters and bytes of all texts, each counted at every mention, as JSON or a page would hold it.
MAX_TEXT = 4 << 20
MAX_NAME = 500  # of a module, and of an attribute
# The author of a file can give many tuples or large integers equal hashes, and a dict of equal hashes takes quadratic
# time. Text and bytes have random hashes; too few 64-bit integers are equal.
MAX_KEY_BITS = 64

_TENSOR: Global = ("torch._utils", "_rebuild_tensor_v2")
_TYPED_TENSOR: Global = ("torch._utils", "_rebuild_tensor_v3")  # has a storage of bytes, and names its dtype
_PARAMETER: Global = ("torch._utils", "_rebuild_parameter")
_ORDERED: Global = ("collections", "OrderedDict")
_SIZE: Global = ("torch", "Size")
_ENCODE: Global = ("_codecs", "encode")
_TENSOR_BUILDERS = frozenset({_TENSOR, _TYPED_TENSOR, _PARAMETER, ("torch._utils", "_rebuild_tensor")})
_CONTAINERS: dict[Global, Callable[..., object]] = {
    (module, kind.__name__): kind
    for kind in (set, frozenset, bytes, bytearray)
    for module in ("builtins", "__builtin__")
}
_SIZED = (list, tuple, set, bytes, str, dict)
# The first textual-inversion embeddings keep their tensors in one.
_PARAMETERS: Global = ("torch.nn.modules.container", "ParameterDict")
# torch 1.12 and 1.13 wrote tensors of Apple's GPU as arrays of numpy, with the numbers in the pickle.
_FROM_NUMPY: Global = ("torch._utils", "_rebuild_device_tensor_from_numpy")
_ARRAY, _NUMPY_TYPE = ("numpy", "ndarray"), ("numpy", "dtype")
_MULTIARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")
_EMPTY_ARRAYS = frozenset((module, "_reconstruct") for module in _MULTIARRAYS)
_FROM_BUFFER = frozenset((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core"))  # protocol 5
_SCALARS = frozenset((module, "scalar") for module in _MULTIARRAYS)
_CODECS = {"latin1": "latin-1", "latin-1": "latin-1", "utf-8": "utf-8", "utf8": "utf-8", "ascii": "ascii"}
STORAGE_DTYPES = {
    "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ShortStorage": "int16",
    "UntypedStorage": "uint8",
}
_DTYPES: dict[Global, str] = {
    (module, name): dtype for module in ("torch", "torch.storage") for name, dtype in STORAGE_DTYPES.items()
}
_TORCH_TYPES = frozenset(
    {"bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "complex64", "complex128"}
    | {"float64", "float32", "float16", "bfloat16"}
    | {"float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"}
)
_READ = (
    _TENSOR_BUILDERS
    | _CONTAINERS.keys()
    | _DTYPES.keys()
    | _EMPTY_ARRAYS
    | _FROM_BUFFER
    | _SCALARS
    | {("torch", name) for name in _TORCH_TYPES}
    | {_ORDERED, _SIZE, _ENCODE, _PARAMETERS, _FROM_NUMPY, _ARRAY, _NUMPY_TYPE}
)
assert _READ <= KNOWN


# Types of values without parts, for a quick check.
PLAIN = frozenset({str, int, float, bool, bytes, type(None)})


class MalformedPickleError(Exception):
    """The bytes are not a well-formed pickle within the limits. The message is a sentence about what and where."""


@dataclass(frozen=True, eq=False)
class Symbol:
    """A reference to a global with a meaning known here."""

    name: Global


@dataclass(frozen=True, eq=False)
class Opaque:
    """Represents anything else: a global, or the result of a call of it.

    Attributes:
        name: The global; None for something else.
        is_global: It is the global itself, not the result of a call.
    """

    name: Global | None
    is_global: bool = False


@dataclass(frozen=True, eq=False)
class Blob:
    """A long text or byte string that stays in the file; see `big_arguments`.

    Attributes:
        offset: Offset in the file, in bytes.
        size: Size in the file, in bytes.
        is_text: It is UTF-8; False for bytes.
        encoding: "latin-1" or "utf-8" for a text that was encoded to bytes; None for others.
    """

    offset: int
    size: int
    is_text: bool
    encoding: str | None = None


# These two are not frozen, because that takes three times as long and each file has dozens.
@dataclass(slots=True, eq=False)
class StorageRef:
    """A storage: its key, the name of its dtype, and the number of values of that dtype.

    `data` are the numbers of a numpy array in the pickle; None for a storage elsewhere in the file. The file counts the
    values of an untyped storage in bytes.
    """

    key: str
    dtype: str
    count: int
    data: bytes | Blob | None = None
    is_untyped: bool = False


@dataclass(slots=True, eq=False)
class TensorRef:
    """A tensor as the pickle describes it: a view of a storage, counted in values."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """Name of the torch dtype, such as "float16"."""
        return self.storage.dtype

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class Parameters(OrderedDict[object, object]):
    """The parameters of an `nn.ParameterDict`."""


# Classes that may be instantiated, without arguments.
_DICTS: dict[Global, type[OrderedDict[object, object]]] = {_ORDERED: OrderedDict, _PARAMETERS: Parameters}


@dataclass
class Pickle:
    """The contents of one pickle.

    Attributes:
        value: The top-level object.
        end: Offset of the first byte after it.
        refused: What it names or calls that is not on the allow-list, in order; empty for a safe pickle.
        has_frames: It is divided by FRAME; `tracing` checks that these fit its opcodes.
    """

    value: object
    end: int
    refused: list[Refusal]
    has_frames: bool = False


@dataclass(frozen=True)
class Refusal:
    """Something that is not on the allow-list.

    Attributes:
        what: Description in words.
        name: The global in question; None for something else.
        offset: Offset from the beginning of the data, in bytes.
        is_harmless: Sound files of other kinds hold it, and it cannot run code of the file's choice.
    """

    what: str
    name: Global | None
    offset: int
    is_harmless: bool = False

    def __str__(self) -> str:
        return f"{self.what} at byte {self.offset}"


def read_pickle(data: bytes, start: int = 0, blobs: Sequence[Blob] = ()) -> Pickle:
    """Read the pickle that begins at `start` of `data`.

    Args:
        data: The bytes.
        start: Offset of the pickle.
        blobs: What `big_arguments.shortened` replaced by placeholders in `data`, in order.

    Raises:
        MalformedPickleError: It is damaged or exceeds a limit of this module.
    """
    machine = _Machine(data[: start + MAX_PICKLE_SIZE], start, blobs=list(blobs))
    try:
        value = machine.run()
        if machine.unknown_text is not None:
            raise MalformedPickleError(f"The text before byte {machine.unknown_text} is not UTF-8.")
        _check_tree(value, machine)
    except (IndexError, KeyError, TypeError, ValueError, struct.error, OverflowError, RecursionError) as error:
        detail = f"{type(error).__name__}: {error}"[:120]
        raise MalformedPickleError(f"The opcode before byte {machine.at} is invalid ({detail}).") from error
    return Pickle(value, machine.at, machine.refused, machine.has_frames)


def _check_tree(value: object, machine: _Machine) -> None:
    """Refuse a tree that nests too deeply, contains itself, unfolds into too much, or holds other things than data."""
    level: list[object] = [value]  # all values of one depth
    depth, seen, text = 0, 1, 0
    while level:
        if depth > MAX_DEPTH:
            raise MalformedPickleError(f"Containers nest more than {MAX_DEPTH} deep, or one contains itself.")
        deeper: list[object] = []
        for item in level:
            kind = type(item)
            if kind is str or kind is bytes:
                text += len(item)  # type: ignore[arg-type]
                continue
            if kind in PLAIN:
                continue
            if kind is bytearray:
                text += len(item)  # type: ignore[arg-type]
            if isinstance(item, (StorageRef, Blob)):
                what = "storage" if isinstance(item, StorageRef) else "text or byte string above the limit"
                raise MalformedPickleError(f"A {what} is used as a value.")
            if isinstance(item, (Symbol, NumpyArray, NumpyType)):
                machine.refuse_value(item)
            if isinstance(item, dict):
                deeper += item
                deeper += item.values()
            elif isinstance(item, (list, tuple, set, frozenset)):
                deeper += item
            if seen + len(deeper) > MAX_VALUES:
                raise MalformedPickleError(f"It unfolds into more than {MAX_VALUES:,} values.")
        if text > MAX_TEXT:
            raise MalformedPickleError(f"The texts unfold into more than {MAX_TEXT:,} characters.")
        seen += len(deeper)
        level, depth = deeper, depth + 1


_MARK = object()

# torch.save describes each tensor except the first with these 28 opcodes, in which only numbers differ. They are four
# fifths of a hypernetwork's pickle, and take a third of the time if they are read at once.
_NUMBER, _PUT = rb"(K.|M..|J...[\x00-\x7f])", rb"(q.|r.[^\0]\0\0)"
_SIZES = rb"(?:%(n)s\x85|%(n)s%(n)s\x86)%(put)s" % {b"n": _NUMBER, b"put": _PUT}
_USUAL_TENSOR = re.compile(
    rb"h(.)\(\("  # _rebuild_tensor_v2
    rb"h(.)h(.)X(.)\0\0\0(\d{1,9})%(put)sh(.)%(n)st%(put)sQ"  # ("storage", type, key, location, count)
    rb"%(n)s%(sizes)s%(sizes)s\x89h(.)\)R%(put)st%(put)sR%(put)s"  # offset, shape, stride, False, OrderedDict()
    % {b"n": _NUMBER, b"put": _PUT, b"sizes": _SIZES},
    re.DOTALL,
)
# In one pickle; each counts as one opcode of `MAX_OPCODES`.
_MAX_USUAL_TENSORS = 5_000


@dataclass
class _Machine:
    """The stack machine. `run` dispatches each opcode to the method that `_OPCODES` names."""

    data: bytes
    at: int
    stack: list[object] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    blobs: list[Blob] = field(default_factory=list)
    copied: int = 0
    encoded_characters: int = 0
    has_frames: bool = False
    arrays: int = 0
    blobs_used: int = 0
    usual_tensors: int = 0
    unknown_text: int | None = None  # offset after the first text of Python 2 that is not UTF-8
    push: Callable[[object], None] = field(init=False)

    def __post_init__(self) -> None:
        self.push = self.stack.append  # most opcodes push something

    def run(self) -> object:
        data, stack, memo, opcodes = self.data, self.stack, self.memo, _OPCODES
        last = len(data) - 3  # the last offset with an opcode and two bytes of argument
        for _ in range(MAX_OPCODES):
            at = self.at
            # Six opcodes of ten are among these, which run here because calls would take most of the time.
            if at <= last:
                code = data[at]
                if code == 0x71:  # BINPUT
                    memo[data[at + 1]] = stack[-1]
                    self.at = at + 2
                    continue
                if code == 0x68:  # BINGET
                    if data[at + 2] == 0x28 and self.usual_tensor():  # MARK
                        continue
                    stack.append(memo[data[at + 1]])
                    self.at = at + 2
                    continue
                if code == 0x4D:  # BININT2
                    stack.append(data[at + 1] | data[at + 2] << 8)
                    self.at = at + 3
                    continue
                if code == 0x4B:  # BININT1
                    stack.append(data[at + 1])
                    self.at = at + 2
                    continue
            elif at < len(data):
                code = data[at]
            else:
                raise MalformedPickleError("It is cut off.")
            self.at = at + 1
            if code == 0x2E:  # STOP
                if len(stack) != 1:
                    raise MalformedPickleError(f"It ends at byte {self.at} with {len(stack)} values instead of one.")
                return stack.pop()
            action = opcodes[code]
            if action is None:
                raise MalformedPickleError(f"Byte {at} is {code:#04x}, which is not a pickle opcode.")
            action(self)
        raise MalformedPickleError(f"It has more than {MAX_OPCODES:,} opcodes.")

    # -- reading arguments

    def frame(self) -> None:
        self.has_frames = True
        if self.number(8) > len(self.data) - self.at and not self.blobs:
            raise MalformedPickleError(f"It is cut off: the frame before byte {self.at} is longer.")

    def protocol(self) -> None:
        if (number := self.number(1)) > 5:
            raise MalformedPickleError(f"It has protocol {number}, and 5 is the newest.")

    def take(self, size: int) -> bytes:
        piece = self.data[self.at : self.at + size]
        if size < 0 or len(piece) != size:
            raise MalformedPickleError(f"It is cut off: it declares {size:,} bytes at byte {self.at}.")
        self.at += size
        return piece

    def number(self, size: int, signed: bool = False) -> int:
        at, end = self.at, self.at + size
        if end > len(self.data):
            raise MalformedPickleError(f"It is cut off: it declares {size:,} bytes at byte {at}.")
        self.at = end
        return int.from_bytes(self.data[at:end], "little", signed=signed)

    def line(self) -> str:
        end = self.data.find(b"\n", self.at)
        if end < 0:
            raise MalformedPickleError("It is cut off inside a line of text.")
        text = self.data[self.at : end]
        self.at = end + 1
        return text.decode("utf-8", "surrogateescape")

    # -- the stack

    def pop(self) -> object:
        value = self.stack.pop()
        if value is _MARK:
            raise MalformedPickleError(f"A value is missing at byte {self.at}.")
        return value

    def pop_mark(self) -> list[object]:
        index = len(self.stack)
        for item in reversed(self.stack):
            index -= 1
            if item is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise MalformedPickleError(f"A mark is missing at byte {self.at}.")

    def refuse(self, what: str, name: Global | None, is_harmless: bool = False) -> Opaque:
        if len(self.refused) < 100:
            self.refused.append(Refusal(what, name, self.at - 1, is_harmless))
        elif not is_harmless and self.refused[-1].is_harmless:  # never leave out a harmful one
            self.refused[-1] = Refusal(what, name, self.at - 1)
        return Opaque(name)

    def refuse_value(self, value: Symbol | NumpyArray | NumpyType) -> None:
        """Note a value other than data that sound files of other kinds hold."""
        if isinstance(value, Symbol):
            self.refuse(f"the global {shown(joined(value.name), 200)}", value.name, is_harmless=True)
        else:
            kind = "array" if isinstance(value, NumpyArray) else "dtype"
            self.refuse(f"a numpy {kind}", _ARRAY, is_harmless=True)

    def count_copied(self, *values: object) -> None:
        """Count copied containers. Raises MalformedPickleError if all copies together hold too much."""
        self.copied += sum(len(value) for value in values if isinstance(value, _SIZED))
        if self.copied > MAX_VALUES:
            raise MalformedPickleError(f"It copies more than {MAX_VALUES:,} values.")

    # -- numbers and text

    def integer_text(self) -> None:
        text = self.line()
        if text in ("00", "01"):
            self.push(text == "01")
            return
        number = _c_integer(text)
        if len(text) == 2 and number in (0, 1):  # C's unpickler makes a bool of it, Python's a number
            raise MalformedPickleError(f"A bool before byte {self.at} has an odd form.")
        self.push(number)

    def long_bytes(self, size: int) -> None:
        if size > MAX_INT_BYTES:
            raise MalformedPickleError(f"An integer at byte {self.at} has {size:,} bytes.")
        self.push(int.from_bytes(self.take(size), "little", signed=True))

    def quoted(self) -> None:
        text = self.line()
        if len(text) < 2 or text[0] != text[-1] or text[0] not in "'\"":
            raise MalformedPickleError(f"A string before byte {self.at} lacks its quotes.")
        data, _ = codecs.escape_decode(text[1:-1].encode("utf-8", "surrogateescape"))
        self.old_text(bytes(data))

    def old_text(self, data: bytes) -> None:
        """Push text of Python 2, whose encoding is not stated: UTF-8 for torch.load and so for the webuis.

        Other text is refused at the end, after everything that the pickle names or calls is known.
        """
        try:
            self.push(data.decode("utf-8"))
        except UnicodeDecodeError:
            self.unknown_text = self.unknown_text or self.at
            self.push(data.decode("utf-8", "surrogateescape"))

    def text(self, size: int) -> None:
        self.push(self.take(size).decode("utf-8", "surrogatepass"))

    def text_of_four(self) -> None:
        """Push text with its size in four bytes, as torch.save writes all names."""
        at = self.at + 4
        end = at + int.from_bytes(self.data[self.at : at], "little")
        if end > len(self.data):
            raise MalformedPickleError(f"It is cut off: it declares {end - at:,} bytes at byte {self.at}.")
        self.at = end
        self.push(self.data[at:end].decode("utf-8", "surrogatepass"))

    # -- containers

    def blob(self) -> None:
        """Push the next text or byte string that stays in the file."""
        if self.blobs_used >= len(self.blobs):
            raise MalformedPickleError(f"Byte {self.at - 1} is 0xff, which is not a pickle opcode.")
        self.push(self.blobs[self.blobs_used])
        self.blobs_used += 1

    def append(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise MalformedPickleError(f"It appends to a {type(target).__name__} at byte {self.at}.")

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        pairs = zip(_keys(items[::2]), items[1::2], strict=True)
        if isinstance(target, dict):
            target.update(pairs)
        elif not isinstance(target, Opaque):
            raise MalformedPickleError(f"It sets items of a {type(target).__name__} at byte {self.at}.")

    def add_items(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if isinstance(target, set):
            target.update(_keys(items))
        elif not isinstance(target, Opaque):
            raise MalformedPickleError(f"It adds to a {type(target).__name__} at byte {self.at}.")

    def dictionary(self) -> None:
        items = self.pop_mark()
        self.push(dict(zip(_keys(items[::2]), items[1::2], strict=True)))

    def tuple_of(self, size: int) -> None:
        items = tuple(self.stack[-size:])
        if len(items) < size or _MARK in items:
            raise MalformedPickleError(f"A value is missing at byte {self.at}.")
        self.stack[-size:] = [items]

    # -- globals and calls: named, never resolved

    def named(self, module: str, attribute: str) -> None:
        name = self.imported(module, attribute)
        if name in _READ:
            self.push(Symbol(name))
        else:
            self.refuse(f"the global {shown(joined(name), 200)}", name, name in KNOWN)
            self.push(Opaque(name, is_global=True))

    def imported(self, module: str, attribute: str) -> Global:
        if max(len(module), len(attribute)) > MAX_NAME:
            # `tracing` decides what other readers would do with it.
            raise MalformedPickleError(f"The name of a global before byte {self.at} has over {MAX_NAME} characters.")
        return module, attribute

    def global_lines(self) -> None:
        module = self.line()
        self.named(module, self.line())

    def global_stack(self) -> None:
        attribute, module = self.pop(), self.pop()
        if not isinstance(attribute, str) or not isinstance(module, str):
            raise MalformedPickleError(f"The name of a global at byte {self.at} is not text.")
        self.named(module, attribute)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if isinstance(function, Symbol) and isinstance(arguments, tuple):
            self.push(self.result_of(function.name, arguments))
        elif isinstance(function, Opaque):
            self.push(self.opaque_call(function, arguments))
        else:
            self.push(self.refuse(f"a call of a {type(function).__name__}", None))

    def opaque_call(self, function: Opaque, arguments: object) -> Opaque:
        """Note a call of a global, unless calls of it are known to be harmless."""
        given = arguments if isinstance(arguments, tuple) else ()
        names = [value.name if isinstance(value, (Symbol, Opaque)) else None for value in given]
        if function.is_global and function.name is not None and may_be_called(function.name, names):
            return Opaque(function.name)
        if function.name is not None and function.name not in KNOWN:
            return Opaque(function.name)  # the global itself was refused
        what = "the result of a call" if function.name is None else shown(joined(function.name), 200)
        return self.refuse(f"a call of {what}", function.name)

    def result_of(self, name: Global, arguments: tuple[Any, ...]) -> object:
        """Return the result of calling the allowed global `name`, made here from plain data."""
        # The two calls of every tensor come first; they copy a few sizes at most.
        if name in _TENSOR_BUILDERS:
            return self.tensor(name, arguments)
        if name == _ORDERED and not arguments:
            return OrderedDict()
        if name == _ENCODE:
            return self.encoded(arguments)
        if name in (_NUMPY_TYPE, _FROM_NUMPY) or name in _EMPTY_ARRAYS | _FROM_BUFFER | _SCALARS:
            return self.numpy_call(name, arguments)
        self.count_copied(*arguments)
        if name == _ORDERED:
            return OrderedDict(_pairs(arguments))
        if name == _SIZE:
            sizes = arguments or ((),)
            if len(sizes) > 1 or not _is_sizes(sizes[0]):
                raise MalformedPickleError(f"A torch.Size before byte {self.at} holds other things than numbers.")
            return torch.Size(sizes[0])
        if name in _CONTAINERS and len(arguments) <= 1 and all(isinstance(a, (list, tuple, bytes)) for a in arguments):
            given = [_keys(argument) for argument in arguments] if name[1].endswith("set") else arguments
            return _CONTAINERS[name](*given)
        if name[1] == "bytearray" and len(arguments) == 2 and isinstance(arguments[0], str):
            codec = _CODECS.get(arguments[1]) if isinstance(arguments[1], str) else None
            if codec is not None:
                return bytearray(arguments[0], codec)
        return self.odd_call(name)

    def odd_call(self, name: Global) -> Opaque:
        """Note a call with arguments that no known program writes; it is harmless if any call of the global is."""
        return self.refuse(f"a call of {shown(joined(name), 200)} with unexpected arguments", name, name in CALLED)

    def encoded(self, arguments: tuple[Any, ...]) -> object:
        """Return bytes as protocol 2 writes them: `_codecs.encode` of a text, by default to UTF-8."""
        text, codec = (*arguments, "utf-8")[:2] if arguments else (None, None)
        codec = _CODECS.get(codec) if isinstance(codec, str) else None
        if len(arguments) > 2 or codec is None:
            return self.odd_call(_ENCODE)
        if isinstance(text, Blob) and text.is_text and text.encoding is None:
            return Blob(text.offset, text.size, True, codec)
        if not isinstance(text, str):
            return self.odd_call(_ENCODE)
        self.encoded_characters += len(text)
        if self.encoded_characters > MAX_PICKLE_SIZE:
            raise MalformedPickleError(f"It encodes more than {MAX_PICKLE_SIZE:,} characters.")
        return text.encode(codec)

    def numpy_call(self, name: Global, arguments: tuple[Any, ...]) -> object:
        """Return numpy's pickled arrays and scalars: an empty array for BUILD to fill, or a number."""
        if name == _NUMPY_TYPE and 1 <= len(arguments) <= 3 and isinstance(arguments[0], str):
            return NumpyType(arguments[0][:20])
        if name in _EMPTY_ARRAYS and len(arguments) == 3 and _is(arguments[0], _ARRAY):
            return NumpyArray()
        if name in _SCALARS and len(arguments) == 2 and isinstance(arguments[0], NumpyType):
            number = scalar(arguments[0], arguments[1])
            return self.odd_call(name) if number is None else number
        if name in _FROM_BUFFER and len(arguments) == 4:
            data, dtype, shape, order = arguments
            array = NumpyArray()
            array.fill(shape, dtype, order == "F", bytes(data) if isinstance(data, bytearray) else data, Blob)
            return array
        if name == _FROM_NUMPY and len(arguments) >= 2 and isinstance(arguments[0], NumpyArray):
            return self.tensor_of_array(arguments[0], arguments[1])
        return self.odd_call(name)

    def tensor_of_array(self, array: NumpyArray, dtype: object) -> object:
        if array.dtype is None or not _is(dtype, ("torch", array.dtype)):
            return self.odd_call(_FROM_NUMPY)
        self.arrays += 1
        count = math.prod(array.shape)
        assert isinstance(array.data, (bytes, Blob))
        storage = StorageRef(f"array {self.arrays}", array.dtype, count, array.data)
        return TensorRef(storage, 0, array.shape, array.stride)

    def tensor(self, name: Global, arguments: tuple[object, ...]) -> object:
        if name == _PARAMETER:
            if not arguments or not isinstance(arguments[0], (TensorRef, Opaque)):
                return self.odd_call(name)
            return arguments[0]
        if len(arguments) < 4:
            raise MalformedPickleError(f"A tensor before byte {self.at} is described by {len(arguments)} values.")
        if any(arguments[7 if name == _TYPED_TENSOR else 6 :]):  # its values differ from those of the storage
            raise MalformedPickleError(f"A tensor before byte {self.at} is marked as negated or conjugated.")
        if name == _TYPED_TENSOR:
            return self.typed_tensor(arguments)
        storage, offset, shape, stride = arguments[:4]
        if not isinstance(storage, StorageRef):
            return self.refuse("a tensor of an unknown kind of storage", name, isinstance(storage, Opaque))
        if not isinstance(offset, int) or not _is_sizes(shape) or not _is_sizes(stride):
            raise self.odd_sizes()
        return TensorRef(storage, offset, tuple(shape), tuple(stride))  # type: ignore[arg-type]

    def typed_tensor(self, arguments: tuple[object, ...]) -> object:
        """Return a tensor with an untyped storage, whose dtype follows the gradient and hooks."""
        storage, offset, shape, stride = arguments[:4]
        dtype = arguments[6] if len(arguments) in (7, 8) else None
        if not isinstance(dtype, Symbol) or dtype.name[0] != "torch" or dtype.name[1] not in _TORCH_TYPES:
            return self.odd_call(_TYPED_TENSOR)
        if not isinstance(storage, StorageRef) or storage.dtype != "uint8":
            return self.odd_call(_TYPED_TENSOR)
        if not isinstance(offset, int) or not _is_sizes(shape) or not _is_sizes(stride):
            raise self.odd_sizes()
        size = item_size(dtype.name[1])
        if storage.count % size:
            raise MalformedPickleError(
                f"A storage before byte {self.at} has {storage.count} bytes for values of {size} bytes."
            )
        typed = StorageRef(storage.key, dtype.name[1], storage.count // size, is_untyped=True)
        return TensorRef(typed, offset, tuple(shape), tuple(stride))  # type: ignore[arg-type]

    def odd_sizes(self) -> MalformedPickleError:
        return MalformedPickleError(f"The sizes of a tensor before byte {self.at} are not numbers.")

    def usual_tensor(self) -> bool:
        """Run the opcodes of `_USUAL_TENSOR` if they are here; False leaves them to run one by one."""
        match = _USUAL_TENSOR.match(self.data, self.at) if self.usual_tensors < _MAX_USUAL_TENSORS else None
        if match is None:
            return False
        # fmt: off
        (builder, storage, kind, key_size, key, key_put, location, count, id_put, offset,
         length, rows, columns, shape_put, step, row_step, column_step, stride_put,
         hooks, hooks_put, arguments_put, put) = match.groups()
        # fmt: on
        memo = self.memo
        word, named, place = memo.get(storage[0]), memo.get(kind[0]), memo.get(location[0])
        dtype = _DTYPES.get(named.name) if type(named) is Symbol else None
        known = _is(memo.get(builder[0]), _TENSOR) and _is(memo.get(hooks[0]), _ORDERED)
        if not (known and dtype and word == "storage" and type(place) is str):
            return False
        replaced = key_put == b"q" + location or b"q" + hooks in (key_put, id_put, shape_put, stride_put)
        if replaced or len(key) != key_size[0]:  # it uses a value that it has replaced, or its key ends elsewhere
            return False
        ref, start = StorageRef(key.decode(), dtype, _number(count)), _number(offset)
        shape = (_number(length),) if length else (_number(rows), _number(columns))
        stride = (_number(step),) if step else (_number(row_step), _number(column_step))
        tensor, none = TensorRef(ref, start, shape, stride), OrderedDict[object, object]()
        # Later opcodes may refer to any of these.
        memo[_number(key_put)] = ref.key
        memo[_number(id_put)] = (word, named, ref.key, place, ref.count)
        memo[_number(shape_put)] = shape
        memo[_number(stride_put)] = stride
        memo[_number(hooks_put)] = none
        memo[_number(arguments_put)] = (ref, start, shape, stride, False, none)
        memo[_number(put)] = tensor
        self.push(tensor)
        self.at = match.end()
        self.usual_tensors += 1
        return True

    def persistent(self) -> None:
        """Push a storage: ("storage", type, key, location, number of values[, view]).

        The legacy stream also names the class of a module: ("module", class, file, source text).
        """
        given = self.pop()
        if isinstance(given, tuple) and len(given) == 4 and given[0] == "module" and isinstance(given[1], Symbol):
            self.push(given[1])
            return
        if not isinstance(given, tuple) or len(given) < 5 or given[0] != "storage":
            self.push(self.refuse("a persistent id that is not a storage", None))
            return
        _, kind, key, _, count, *view = given
        dtype = _DTYPES.get(kind.name) if isinstance(kind, Symbol) else None
        if dtype is None:
            self.push(Opaque(getattr(kind, "name", None)))
        elif not isinstance(key, (str, int)) or not isinstance(count, int) or count < 0 or any(view):
            raise MalformedPickleError(f"A storage before byte {self.at} has an odd key, size or view.")
        else:
            self.push(StorageRef(str(key), dtype, count))

    def build(self) -> None:
        """Set attributes. The `_metadata` that torch gives an OrderedDict are dropped."""
        state, target = self.pop(), self.stack[-1]
        # Other attributes, such as `items`, may change what programs see of the dict.
        plain = isinstance(target, OrderedDict) and isinstance(state, dict) and state.keys() <= {"_metadata"}
        if isinstance(target, Parameters) and isinstance(state, dict):
            parameters = state.get("_parameters")
            self.count_copied(parameters)
            target.update(parameters if isinstance(parameters, dict) else {})
        elif isinstance(target, NumpyType):
            target.build(state)
            if not target.is_plain:
                self.stack[-1] = self.refuse("a numpy dtype whose state contradicts its code", _NUMPY_TYPE)
        elif isinstance(target, NumpyArray):
            target.build(state, Blob)
        elif isinstance(target, Opaque) and target.is_global:
            self.stack[-1] = self.refuse("attributes set on a global", target.name)
        elif not plain and not isinstance(target, Opaque):
            self.stack[-1] = self.refuse(f"attributes set on a {type(target).__name__}", None)

    def instance(self, arguments: list[object]) -> None:
        """Instantiate a class (INST, OBJ, NEWOBJ, NEWOBJ_EX): one of two kinds of dicts."""
        made = next((a for a in arguments if isinstance(a, (Symbol, Opaque))), None)
        name = made.name if made is not None else None
        if name in _DICTS and isinstance(made, Symbol) and all(a is made or a in ((), {}) for a in arguments):
            self.push(_DICTS[name]())
        elif isinstance(made, Opaque) and made.name is not None and made.name not in KNOWN:
            self.push(Opaque(made.name))  # the global itself was refused
        elif isinstance(made, Opaque) and made.is_global and made.name in CALLED:
            self.push(Opaque(made.name))
        else:
            what = "an object of an unknown class" if name is None else f"an object of {shown(joined(name), 200)}"
            self.push(self.refuse(what, name, name in CALLED))

    def inst(self) -> None:
        module = self.line()
        name = self.imported(module, self.line())
        arguments = self.pop_mark()
        if name in _DICTS and not arguments:
            self.push(_DICTS[name]())
        else:
            self.push(self.refuse(f"an object of {shown(joined(name), 200)}", name, name in CALLED))

    def extension(self, size: int) -> None:
        code = int.from_bytes(self.take(size), "little")
        self.push(self.refuse(f"the extension code {code}", ("copyreg", f"extension {code}")))

    def persistent_text(self) -> None:
        self.line()
        self.push(self.refuse("a persistent id in text", None))

    def read_only(self) -> None:
        self.stack[-1] = self.refuse("a read-only buffer", None)

    def buffer(self) -> None:
        self.push(self.refuse("an out-of-band buffer", None))


@functools.lru_cache(1 << 12)  # files repeat a few sizes and offsets
def _number(argument: bytes) -> int:
    """Return the argument of an opcode that `_USUAL_TENSOR` finds; these are never negative."""
    return int.from_bytes(argument[1:], "little")


def _is(value: object, name: Global) -> bool:
    return type(value) is Symbol and value.name == name


def _integer(text: str, base: int = 0) -> int:
    """Return the integer in a line, as C's pickle reads LONG (base 0) and the indices of the memo (base 10)."""
    digits = text[:-1] if text.endswith("L") and base == 0 else text
    if len(digits) > MAX_INT_BYTES * 3:
        raise MalformedPickleError(f"An integer has {len(digits):,} digits.")
    if not digits.isascii():
        raise MalformedPickleError("An integer has other digits than 0 to 9.")
    return int(digits, base)


# Numbers that C's strtol reads whole, with base 0: a leading 0 makes them octal.
_STRTOL = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)")


def _c_integer(text: str) -> int:
    """Return the integer in the line of INT, which C's pickle reads by strtol, then by int(text, 0)."""
    found = _STRTOL.fullmatch(text) if len(text) <= MAX_INT_BYTES * 3 else None
    if found is not None:
        sign, digits = found.groups()
        base = 16 if digits[1:2] in ("x", "X") else 8 if digits[0] == "0" else 10
        number = int(sign + digits, base)
        if -(1 << 63) <= number < 1 << 63:
            return number
    return _integer(text)


# Numbers that C's pickle reads as FLOAT, without spaces and underscores.
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE)


def _c_float(text: str) -> float:
    if len(text) > MAX_TEXT or not _FLOAT.fullmatch(text):
        raise MalformedPickleError("A FLOAT is not a decimal number.")
    return float(text)


@functools.cache
def item_size(dtype: str) -> int:
    """Return the bytes of one value of the torch dtype of that name."""
    if dtype == "bool":
        return 1
    bits = re.search(r"\d+", dtype)
    assert bits is not None, dtype
    return int(bits[0]) // 8


def _is_sizes(value: object) -> bool:
    if not isinstance(value, (tuple, list)) or len(value) > 16:
        return False
    for n in value:  # noqa: SIM110 - `all` takes three times as long for two numbers
        if type(n) is not int or n < 0:
            return False
    return True


def _pairs(arguments: tuple[object, ...]) -> list[tuple[object, object]]:
    """Return the items given to OrderedDict(...): Python 2 wrote a list of [key, value]."""
    given = arguments[0]
    if not isinstance(given, (list, tuple, dict)) or len(arguments) != 1:
        raise MalformedPickleError("An OrderedDict is made of other things than pairs.")
    pairs = [(key, value) for key, value in (given.items() if isinstance(given, dict) else given)]
    _keys(key for key, _ in pairs)
    return pairs


def has_chosen_hash(key: object) -> bool:
    """Return whether the author of a file can have chosen the hash of a key; see `MAX_KEY_BITS`."""
    return isinstance(key, (tuple, frozenset)) or (isinstance(key, int) and key.bit_length() > MAX_KEY_BITS)


def _keys(keys: Iterable[object]) -> list[object]:
    """Return the keys of a dict or items of a set, refusing those with chosen hashes."""
    checked = list(keys)
    for key in checked:
        if has_chosen_hash(key):
            raise MalformedPickleError(f"A {type(key).__name__} is used as a key. Expected text or a number.")
    return checked


def _put(machine: _Machine, index: int) -> None:
    if index < 0:
        raise MalformedPickleError(f"An index at byte {machine.at} is negative.")
    machine.memo[index] = machine.stack[-1]


_Action = Callable[[_Machine], object]
_ACTIONS: dict[int, _Action] = {
    ord(code): action
    for code, action in {
        # numbers
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "I": lambda m: m.integer_text(),
        "L": lambda m: m.push(_integer(m.line())),
        "F": lambda m: m.push(_c_float(m.line())),
        "J": lambda m: m.push(m.number(4, signed=True)),
        "K": lambda m: m.push(m.number(1)),
        "M": lambda m: m.push(m.number(2)),
        "G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
        "\x8a": lambda m: m.long_bytes(m.number(1)),
        "\x8b": lambda m: m.long_bytes(m.number(4, signed=True)),
        # text and bytes
        "S": lambda m: m.quoted(),
        "T": lambda m: m.old_text(m.take(m.number(4, signed=True))),
        "U": lambda m: m.old_text(m.take(m.number(1))),
        "V": lambda m: m.push(m.line().encode("utf-8", "surrogateescape").decode("raw_unicode_escape")),
        "X": _Machine.text_of_four,
        "\x8c": lambda m: m.text(m.number(1)),
        "\x8d": lambda m: m.text(m.number(8)),
        "B": lambda m: m.push(m.take(m.number(4))),
        "C": lambda m: m.push(m.take(m.number(1))),
        "\x8e": lambda m: m.push(m.take(m.number(8))),
        "\x96": lambda m: m.push(bytearray(m.take(m.number(8)))),
        # containers
        "(": lambda m: m.push(_MARK),
        "]": lambda m: m.push([]),
        "l": lambda m: m.push(m.pop_mark()),
        "a": lambda m: m.append([m.pop()]),
        "e": lambda m: m.append(m.pop_mark()),
        ")": lambda m: m.push(()),
        "t": lambda m: m.push(tuple(m.pop_mark())),
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "}": lambda m: m.push({}),
        "d": lambda m: m.dictionary(),
        "s": lambda m: m.set_items([m.pop(), m.pop()][::-1]),
        "u": lambda m: m.set_items(m.pop_mark()),
        "\x8f": lambda m: m.push(set()),
        "\x90": lambda m: m.add_items(),
        "\x91": lambda m: m.push(frozenset(_keys(m.pop_mark()))),
        # the stack and the memo
        "0": lambda m: m.stack.pop(),
        "1": lambda m: m.pop_mark(),
        "2": lambda m: m.push(m.stack[-1]),
        "p": lambda m: _put(m, _integer(m.line(), 10)),
        "q": lambda m: _put(m, m.number(1)),
        "r": lambda m: _put(m, m.number(4)),
        "\x94": lambda m: _put(m, len(m.memo)),
        "g": lambda m: m.push(m.memo[_integer(m.line(), 10)]),
        "h": lambda m: m.push(m.memo[m.number(1)]),
        "j": lambda m: m.push(m.memo[m.number(4)]),
        # framing
        "\xff": _Machine.blob,
        "\x80": lambda m: m.protocol(),
        "\x95": lambda m: m.frame(),
        # names, calls and objects
        "c": lambda m: m.global_lines(),
        "\x93": lambda m: m.global_stack(),
        "R": _Machine.call,
        "b": _Machine.build,
        "Q": _Machine.persistent,
        "P": lambda m: m.persistent_text(),
        "i": lambda m: m.inst(),
        "o": lambda m: m.instance(m.pop_mark()),
        "\x81": lambda m: m.instance([m.pop(), m.pop()]),
        "\x92": lambda m: m.instance([m.pop(), m.pop(), m.pop()]),
        "\x82": lambda m: m.extension(1),
        "\x83": lambda m: m.extension(2),
        "\x84": lambda m: m.extension(4),
        "\x97": lambda m: m.buffer(),
        "\x98": _Machine.read_only,
    }.items()
}
# By code; None for other bytes.
_OPCODES = [_ACTIONS.get(code) for code in range(256)]
