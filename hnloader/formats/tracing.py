"""Follow a pickle to find its imports and calls, whatever else it holds. Nothing is imported, called or built.

`pickles` reads a pickle as data and refuses what it does not understand. This module finds which imports and calls
Python would complete before the end or an error. It follows the stack and the memo, keeps only short texts, and
continues wherever some version of Python may continue: it errs on the side of too many findings.

A pickle without an import (GLOBAL, INST, STACK_GLOBAL, EXT) cannot call anything, because plain data cannot be called.

The opcodes are those of Lib/pickletools.py. Where the two unpicklers of CPython differ (Lib/pickle.py,
Modules/_pickle.c), this module accepts what either accepts.
"""

from __future__ import annotations

import codecs
import io
import re
import sys
from _compat_pickle import IMPORT_MAPPING
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from hnloader.errors import CorruptFileError
from hnloader.formats.known_globals import KNOWN, Global, joined, may_be_called
from hnloader.formats.numpy_parts import NUMPY_TYPE, is_plain_type
from hnloader.formats.source import Source
from hnloader.formats.zip_archive import inflated
from hnloader.texts import shown

__all__ = ["Budget", "Trace", "trace_at", "trace_inflated"]

# For all pickles in one file. A full SDXL checkpoint takes 100,000 opcodes and 500 kB.
MAX_OPCODES = 600_000
MAX_BYTES = 64 << 20
MAX_FINDINGS = 100
# Longer texts are not kept: they cannot name a module or attribute.
_MAX_NAME = 1_000
# Most members end at the first byte, because they are not pickles; damaged data loses one piece.
_INFLATED_PIECE = 1 << 10
# Costs in opcodes.
_COST_OF_A_PICKLE, _COST_OF_AN_IMPORT = 40, 10
_LONG_ARGUMENT = 1 << 16
_ODD_FRAME = "a frame that does not end between two opcodes, so that programs read different contents"
# C's unpickler reads the number in a line up to a zero byte.
_INDEX = re.compile(r"\s*([+-]?)(_*[0-9][0-9_]*)\s*")
_INTEGER = re.compile(r"\s*[+-]?(0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|[0-9_]+)[lL]?\s*")
_IDENTIFIERS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
# Modules of this Python and of Python 2, by the names that pickles use.
_PYTHON_MODULES = frozenset(sys.stdlib_module_names) | IMPORT_MAPPING.keys() | {"commands", "popen2", "new", "sets"}
_ARRAY_MAGIC = b"\x93NUMPY"
_TENSOR_BUILDER = ("torch._utils", "_rebuild_tensor_v2")
_PROTOCOLS = re.compile(rb"\x80[\x00-\x05]")

Ending = Literal["stop", "damage", "limit"]


@dataclass(frozen=True)
class Found:
    """An action of a pickle that no hypernetwork needs.

    Attributes:
        what: Description in words.
        name: The global in question; None for something else.
        offset: Offset in the pickle's file or member, in bytes.
    """

    what: str
    name: Global | None
    offset: int


@dataclass
class Trace:
    """The actions of one pickle.

    Attributes:
        ending: "stop" at the end, "damage" where every unpickler fails, "limit" at a limit of this module.
        end: Offset of the first byte after it.
        is_certain: It begins like a pickle of protocol 2 or newer, or was followed to its end. Any text can be read as
            some opcodes of protocol 0.
        found: Actions that are not known to be harmless.
        names: Every global that it names, in order.
        used: The globals that it calls or changes.
    """

    ending: Ending = "damage"
    end: int = 0
    is_certain: bool = False
    found: list[Found] = field(default_factory=list)
    names: dict[Global, None] = field(default_factory=dict)
    used: set[Global] = field(default_factory=set)


@dataclass
class Budget:
    """The remaining costs for one file."""

    opcodes: int = MAX_OPCODES
    bytes: int = MAX_BYTES


class _LimitError(Exception):
    pass


class _DamageError(Exception):
    pass


# -- values


@dataclass(frozen=True, eq=False)
class _Name:
    """An imported global."""

    name: Global


@dataclass(frozen=True, eq=False)
class _Made:
    """The result of a call of a global; `first` is its first argument if that is a text."""

    name: Global
    first: str = ""


_MARK, _PLAIN, _UNKNOWN = object(), object(), object()

_File: TypeAlias = "io.BufferedReader[io.RawIOBase]"


class _Stored(io.RawIOBase):
    """A part of a file as a file whose reads count against a budget."""

    def __init__(self, source: Source, start: int, end: int, budget: Budget) -> None:
        self._source, self._budget = source, budget
        self._start, self._at, self._end = start, start, end

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at - self._start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: self._start, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        self._at = min(max(base + offset, self._start), self._end)
        return self.tell()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        size = min(len(buffer), self._end - self._at)
        _spend(self._budget, size)
        buffer[:size] = self._source.read(self._at, size)
        self._at += size
        return size


class _Pieces(io.RawIOBase):
    """Pieces of data as a file whose reads count against a budget."""

    def __init__(self, pieces: Iterator[memoryview], budget: Budget) -> None:
        self._pieces, self._budget = pieces, budget
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = next(self._pieces, memoryview(b""))
        size = min(len(buffer), len(self._rest))
        _spend(self._budget, size)
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _spend(budget: Budget, size: int) -> None:
    budget.bytes -= size
    if budget.bytes < 0:
        raise _LimitError


def trace_at(source: Source, start: int, budget: Budget, end: int | None = None) -> Trace:
    """Follow the pickle that begins at `start` of a file and ends before `end`. Long texts in it are not read."""
    return _trace(_Stored(source, start, source.size if end is None else end, budget), start, budget)


def trace_inflated(source: Source, start: int, size: int, budget: Budget) -> Trace:
    """Follow the pickle in deflated data. Raises CorruptFileError if it is damaged before the first finding."""
    return _trace(_Pieces(inflated(source, start, size, _INFLATED_PIECE), budget), 0, budget)


def _trace(raw: io.RawIOBase, start: int, budget: Budget) -> Trace:
    budget.opcodes -= _COST_OF_A_PICKLE
    trace = Trace(end=start)
    file: _File = io.BufferedReader(raw, 1 << 12)
    tracer = _Tracer(file, start, trace, budget)
    is_text = False
    try:
        tracer.skip_array_header()
        trace.is_certain = _PROTOCOLS.match(file.peek(2)) is not None
        tracer.run()
        trace.ending, trace.is_certain = "stop", True
    except _DamageError:
        trace.ending = "damage"
        is_text = _is_text(_next_bytes(file))
    except _LimitError:
        trace.ending = "limit"
    except CorruptFileError:
        if not tracer.noted:
            raise
        trace.ending = "damage"
    trace.end, trace.found = tracer.at, list(tracer.noted.values())
    if not trace.is_certain:
        _keep_plausible(trace, is_text=is_text)
    del trace.found[MAX_FINDINGS:]
    return trace


def _next_bytes(file: _File) -> bytes:
    try:
        return file.peek(256)[:256]
    except _LimitError:
        return b""


def _is_text(data: bytes) -> bool:
    """Return whether data is printable UTF-8; the last letter may be cut off."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    return all(byte >= 32 or byte in b"\t\n\r" for byte in data)


def _keep_plausible(trace: Trace, *, is_text: bool) -> None:
    """Drop imports that are words of a text: "cat" and "dog" in two lines look like the GLOBAL "at dog".

    An import counts if it is used. It also counts if both names are identifiers and either the file does not continue
    as a text, or the module is Python's or within a package.
    """
    trace.names = {
        name: None
        for name in trace.names
        if name in trace.used
        or (
            all(_IDENTIFIERS.fullmatch(part) and part.isascii() for part in name)
            and (not is_text or "." in name[0] or name[0] in _PYTHON_MODULES)
        )
    }
    trace.found = [one for one in trace.found if one.name is None or one.name in trace.names]


class _Tracer:
    """Follows the opcodes of a pickle with a stack that keeps only the values that matter."""

    def __init__(self, file: _File, start: int, trace: Trace, budget: Budget) -> None:
        self.file, self.at, self.trace, self.budget = file, start, trace, budget
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.push = self.stack.append
        self.frame_end: int | None = None
        # One of each kind and global, so that many cannot hide another; the budget bounds their number.
        self.noted: dict[tuple[str, Global | None], Found] = {}

    def skip_array_header(self) -> None:
        """Move to the pickle in a NumPy array of objects, whose header states its length and the type O."""
        if not self.file.peek(8).startswith(_ARRAY_MAGIC):
            return
        version = self.take(8)[6]
        size = self.number(2 if version == 1 else 4)
        header = self.take(min(size, _LONG_ARGUMENT))
        self.skip(size - len(header))
        if size == len(header) and b"O" not in header:
            raise _DamageError

    def run(self) -> None:
        read, actions, budget = self.file.read, _ACTIONS, self.budget
        while True:
            budget.opcodes -= 1
            if budget.opcodes < 0:
                raise _LimitError
            if self.frame_end is not None and self.at >= self.frame_end:
                self.leave_frame()
            code = read(1)
            self.at += 1
            if code == b".":
                self.pop()
                if self.frame_end is not None and self.at != self.frame_end:
                    self.find(_ODD_FRAME, None)
                return
            action = actions.get(code)
            if action is None:
                self.at -= len(code) == 0
                raise _DamageError
            action(self)

    def enter_frame(self) -> None:
        """Begin a FRAME. Python reads it ahead; C's unpickler drops the rest of it when it reads beyond."""
        if self.frame_end is not None:
            self.find(_ODD_FRAME, None)
        size = self.number(8)
        self.frame_end = self.at + size

    def leave_frame(self) -> None:
        if self.at != self.frame_end:
            self.find(_ODD_FRAME, None)
        self.frame_end = None

    # -- arguments

    def take(self, size: int) -> bytes:
        data = self.file.read(size)
        self.at += len(data)
        if len(data) != size:
            raise _DamageError
        return data

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def signed(self, size: int) -> int:
        number = int.from_bytes(self.take(size), "little", signed=True)
        if number < 0:
            raise _DamageError
        return number

    def skip(self, size: int) -> None:
        if size > _LONG_ARGUMENT and self.file.seekable():
            before = self.file.tell()
            moved = self.file.seek(min(size, sys.maxsize >> 1) - 1, io.SEEK_CUR) - before
            self.at += moved
            size -= moved
        while size > 0:
            size -= len(self.take(min(size, 1 << 16)))

    def line(self) -> str | None:
        """Return a line without its end; None for a line that is too long for a name.

        If the file ends without a newline, the unpicklers take its last byte as one.
        """
        data = self.file.readline(_MAX_NAME + 2)
        self.at += len(data)
        if not data:
            raise _DamageError
        if len(data) <= _MAX_NAME + 1:
            return data[:-1].decode("utf-8", "surrogateescape")
        while data and not data.endswith(b"\n"):
            data = self.file.readline(1 << 16)
            self.at += len(data)
        return None

    # -- the stack

    def pop(self) -> object:
        if not self.stack or (value := self.stack.pop()) is _MARK:
            raise _DamageError
        return value

    def top(self) -> object:
        if not self.stack or self.stack[-1] is _MARK:
            raise _DamageError
        return self.stack[-1]

    def pop_mark(self) -> list[object]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise _DamageError

    def pop_any(self) -> None:
        if not self.stack:
            raise _DamageError
        self.stack.pop()

    def tuple_of(self, size: int) -> None:
        items = tuple(self.pop() for _ in range(size))
        self.push(items[::-1])

    # -- plain values

    def text(self, data: bytes | None, encoding: str = "utf-8", errors: str = "surrogatepass") -> None:
        """Push a short text, or a placeholder for a long one."""
        try:
            self.push(_PLAIN if data is None else data.decode(encoding, errors))
        except UnicodeDecodeError as error:
            raise _DamageError from error

    def counted_text(self, size: int, *, is_old: bool = False) -> None:
        if size > _MAX_NAME * 4:
            self.skip(size)
            self.push(_PLAIN)
        elif is_old:  # the reader chooses its encoding
            self.text(self.take(size), "utf-8", "surrogateescape")
        else:
            self.text(self.take(size))

    def counted_bytes(self, size: int) -> None:
        self.skip(size)
        self.push(_PLAIN)

    def quoted(self) -> None:
        line = self.line()
        if line is None:
            self.push(_PLAIN)
            return
        data = line.encode("utf-8", "surrogateescape").strip()
        if len(data) < 2 or data[:1] != data[-1:] or data[:1] not in (b"'", b'"'):
            raise _DamageError
        try:
            self.text(bytes(codecs.escape_decode(data[1:-1])[0]), "utf-8", "surrogateescape")
        except ValueError as error:
            raise _DamageError from error

    def unicode_line(self) -> None:
        line = self.line()
        self.text(None if line is None else line.encode("utf-8", "surrogateescape"), "raw_unicode_escape", "strict")

    def number_line(self, is_number: Callable[[str], bool]) -> None:
        line = self.line()
        if line is not None and not is_number(line):
            raise _DamageError
        try:
            self.push(int(line or "", 0))
        except ValueError:
            self.push(_PLAIN)

    def counted_number(self, size: int) -> None:
        self.push(int.from_bytes(self.take(size), "little", signed=size == 4))

    # -- containers

    def change(self, values: int | None) -> None:
        """Add values to the object below them: the given number, or all above the mark."""
        if values is None:
            self.pop_mark()
        else:
            for _ in range(values):
                self.pop()
        if isinstance(target := self.top(), _Name):
            self.find(f"a change of {_shown(target.name)}", target.name)

    # -- the memo

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise _DamageError
        self.push(self.memo[index])

    def index(self) -> int:
        line = self.line()
        digits = (line or "").partition("\0")[0]
        found = _INDEX.fullmatch(digits)
        if found is None:
            raise _DamageError
        return int(found[1] + found[2].replace("_", ""))

    # -- imports and calls

    def find(self, what: str, name: Global | None) -> None:
        """Note the use of a global, unless the global itself is noted."""
        if name is not None:
            self.trace.used.add(name)
            if name not in KNOWN:
                return
        self.note(what, name)

    def note(self, what: str, name: Global | None) -> None:
        self.noted.setdefault((what, name), Found(what, name, self.at - 1))

    def imported(self, module: object, attribute: object) -> _Name:
        if isinstance(module, str) and "\0" in module:
            raise _DamageError  # such a module cannot exist
        self.budget.opcodes -= _COST_OF_AN_IMPORT
        name = (_part(module), _part(attribute))
        if name not in self.trace.names:
            self.trace.names[name] = None
            if name not in KNOWN:
                self.note(f"the global {_shown(name)}", name)
        return _Name(name)

    def global_lines(self) -> None:
        module = self.name_line()
        self.push(self.imported(module, self.attribute_line()))

    def name_line(self) -> str | None:
        """Return a line with a name, which the unpicklers require to be UTF-8."""
        line = self.line()
        if line is not None and any("\udc80" <= letter <= "\udcff" for letter in line):
            raise _DamageError
        return line

    def attribute_line(self) -> str | None:
        """Return the second line of GLOBAL; Python takes an empty one at the end of the file."""
        return self.name_line() if self.file.peek(1) else ""

    def global_stack(self) -> None:
        attribute, module = self.pop(), self.pop()
        if not all(isinstance(part, (str, _Made)) or part in (_PLAIN, _UNKNOWN) for part in (attribute, module)):
            raise _DamageError
        self.push(self.imported(module, attribute))

    def call(self, function: object, arguments: object, what: str = "a call of") -> None:
        if isinstance(function, _Name):
            given = arguments if isinstance(arguments, tuple) else ()
            names = [value.name if isinstance(value, _Name) else None for value in given]
            if not may_be_called(function.name, names):
                self.find(f"{what} {_shown(function.name)}", function.name)
            first = given[0] if given else None
            self.push(_Made(function.name, first if isinstance(first, str) else ""))
        elif isinstance(function, _Made):
            self.find(f"a call of the result of {_shown(function.name)}", function.name)
            self.push(function)
        elif function is _UNKNOWN:
            if self.trace.is_certain:
                self.find("a call of a persistent id", None)
            self.push(_UNKNOWN)
        else:
            raise _DamageError  # plain data cannot be called

    def reduce(self) -> None:
        arguments = self.pop()
        self.call(self.pop(), arguments)

    def new_object(self, arguments: int) -> None:
        given = [self.pop() for _ in range(arguments)]
        self.call(self.pop(), given[-1], "an object of")

    def object_above_mark(self) -> None:
        items = self.pop_mark()
        if not items:
            raise _DamageError
        self.call(items[0], tuple(items[1:]), "an object of")

    def instance(self) -> None:
        module = self.name_line()
        function = self.imported(module, self.attribute_line())
        self.call(function, tuple(self.pop_mark()), "an object of")

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, _Name):
            self.find(f"attributes set on {_shown(target.name)}", target.name)
        elif isinstance(target, _Made) and not may_be_called(target.name, [_TENSOR_BUILDER]):
            self.find(f"attributes set on the result of {_shown(target.name)}", target.name)
        elif isinstance(target, _Made) and target.name == NUMPY_TYPE and not is_plain_type(target.first, state):
            self.find(f"a state of {_shown(target.name)} that turns bytes into addresses", target.name)

    def extension(self, size: int) -> None:
        code = self.number(size)
        self.push(self.imported("copyreg", f"extension {code}"))

    def persistent(self, given: object) -> None:
        kind = given[0] if isinstance(given, tuple) and given else None
        # torch's legacy streams name the class of a module like this.
        named = given[1] if kind == "module" and isinstance(given, tuple) and len(given) > 1 else None
        if kind != "storage" and not isinstance(named, _Name) and self.trace.is_certain:
            self.find("a persistent id that is not a storage", None)
        self.push(_UNKNOWN if named is None else named)

    def persistent_line(self) -> None:
        self.line()
        self.persistent(None)


def _part(value: object) -> str:
    return value if isinstance(value, str) else "?"


def _shown(name: Global) -> str:
    return shown(joined(name), 200)


def _is_integer(text: str) -> bool:
    """Return whether some Python reads a text as an integer: by C's strtol, or int(text, 0)."""
    digits, zero, _ = text.partition("\0")
    return (zero and not digits) or _INTEGER.fullmatch(digits) is not None  # strtol reads an empty text as 0


def _is_float(text: str) -> bool:
    try:
        float(text.partition("\0")[0])
    except ValueError:
        return False
    return True


_Action = Callable[[_Tracer], object]
_ACTIONS: dict[bytes, _Action] = {
    # plain values
    b"N": lambda m: m.push(None),
    **dict.fromkeys((b"\x88", b"\x89", b"]", b"}", b"\x8f"), lambda m: m.push(_PLAIN)),
    b")": lambda m: m.push(()),
    b"I": lambda m: m.number_line(_is_integer),
    b"L": lambda m: m.number_line(_is_integer),
    b"F": lambda m: m.number_line(_is_float),
    b"K": lambda m: m.counted_number(1),
    b"M": lambda m: m.counted_number(2),
    b"J": lambda m: m.counted_number(4),
    b"G": lambda m: m.counted_bytes(8),
    b"\x8a": lambda m: m.counted_bytes(m.number(1)),
    b"\x8b": lambda m: m.counted_bytes(m.signed(4)),
    b"S": _Tracer.quoted,
    b"V": _Tracer.unicode_line,
    b"T": lambda m: m.counted_text(m.signed(4), is_old=True),
    b"U": lambda m: m.counted_text(m.number(1), is_old=True),
    b"X": lambda m: m.counted_text(m.number(4)),
    b"\x8c": lambda m: m.counted_text(m.number(1)),
    b"\x8d": lambda m: m.counted_text(m.number(8)),
    b"B": lambda m: m.counted_bytes(m.number(4)),
    b"C": lambda m: m.counted_bytes(m.number(1)),
    b"\x8e": lambda m: m.counted_bytes(m.number(8)),
    b"\x96": lambda m: m.counted_bytes(m.number(8)),
    b"\x97": lambda m: m.push(_PLAIN),
    b"\x98": lambda m: m.top(),
    # containers
    b"(": lambda m: m.push(_MARK),
    b"l": lambda m: (m.pop_mark(), m.push(_PLAIN)),
    b"d": lambda m: (m.pop_mark(), m.push(_PLAIN)),
    b"\x91": lambda m: (m.pop_mark(), m.push(_PLAIN)),
    b"t": lambda m: m.push(tuple(m.pop_mark())),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"a": lambda m: m.change(1),
    b"s": lambda m: m.change(2),
    b"e": lambda m: m.change(None),
    b"u": lambda m: m.change(None),
    b"\x90": lambda m: m.change(None),
    # the stack and the memo
    b"0": _Tracer.pop_any,
    b"1": _Tracer.pop_mark,
    b"2": lambda m: m.push(m.top()),
    b"p": lambda m: m.put(m.index()),
    b"q": lambda m: m.put(m.number(1)),
    b"r": lambda m: m.put(m.number(4)),
    b"\x94": lambda m: m.put(len(m.memo)),
    b"g": lambda m: m.get(m.index()),
    b"h": lambda m: m.get(m.number(1)),
    b"j": lambda m: m.get(m.number(4)),
    # framing
    b"\x80": lambda m: m.take(1),
    b"\x95": _Tracer.enter_frame,
    # imports and calls
    b"c": _Tracer.global_lines,
    b"\x93": _Tracer.global_stack,
    b"R": _Tracer.reduce,
    b"b": _Tracer.build,
    b"i": _Tracer.instance,
    b"o": _Tracer.object_above_mark,
    b"\x81": lambda m: m.new_object(1),
    b"\x92": lambda m: m.new_object(2),
    b"\x82": lambda m: m.extension(1),
    b"\x83": lambda m: m.extension(2),
    b"\x84": lambda m: m.extension(4),
    b"Q": lambda m: m.persistent(m.pop()),
    b"P": _Tracer.persistent_line,
}
