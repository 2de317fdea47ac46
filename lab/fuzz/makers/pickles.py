"""Make pickles of object trees as torch.save writes them, in every encoding of every protocol."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from lab.fuzz.choices import Choices

# Globals that no pickle may reach. `lab.fuzz.watching` detects a call of the first.
STRANGE_GLOBALS = (
    ("lab.fuzz.canary", "sing"),
    ("os", "system"),
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("collections", "OrderedDict.fromkeys"),
    ("torch._utils", "os.system"),
    ("torch", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch._utils", "_rebuild_wrapper_subclass"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("codecs", "encode"),
    ("", "eval"),
)
KNOWN_GLOBALS = (
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("_codecs", "encode"),
    ("builtins", "set"),
    ("__builtin__", "frozenset"),
    ("builtins", "bytearray"),
    ("torch", "FloatStorage"),
    ("torch", "HalfStorage"),
    ("torch.storage", "UntypedStorage"),
    ("torch.nn.modules.container", "ParameterDict"),
    ("torch", "float32"),
    ("torch.serialization", "_get_layout"),
)
STORAGES = (
    "FloatStorage",
    "HalfStorage",
    "BFloat16Storage",
    "DoubleStorage",
    "LongStorage",
    "BoolStorage",
    "ByteStorage",
)
ITEM_SIZES = dict(zip(STORAGES, (4, 2, 2, 8, 8, 1, 1), strict=True))


@dataclass
class PickleMaker:
    """Writes opcodes; `storages` collects the storages that the pickle names: key -> (kind, number of values)."""

    choices: Choices
    legacy: bool = False
    storages: dict[str, tuple[str, int]] = field(default_factory=dict)
    memo: int = 0
    opcodes: int = 0

    def whole(self) -> bytes:
        """Make a pickle that resembles a hypernetwork."""
        head = b"\x80" + bytes([self.choices.pick((2, 2, 2, 0, 3, 4, 5, 255))])
        data = head + self.hypernetwork() + b"."
        if self.choices.rarely(24):
            at = self.choices.below(len(data))
            data = data[:at] + self.choices.raw(1) + data[at + 1 :]
        return data

    def hypernetwork(self) -> bytes:
        """Make a dict of widths with pairs of state dicts, and some metadata."""
        choices = self.choices
        body = b""
        for _ in range(1 + choices.below(2)):
            width = choices.pick((4, 4, 8, 768, 0))
            key = self.integer(choices.number() if choices.rarely(24) else width)
            body += key + self.tuple_of([self.side(width), self.side(width)])
        for _ in range(choices.below(4)):
            name = choices.pick(METADATA)
            body += self.string(name) + self.metadata(name)
        if choices.rarely(8):
            body += self.value(3) + self.value(3)
        return b"}(" + body + b"u"

    def side(self, width: int) -> bytes:
        """Make a state dict of a 1-2-1 hypernetwork."""
        choices = self.choices
        if choices.rarely(32):
            return self.value(3)
        names = choices.pick((("linear.0", "linear.1"), ("linear1", "linear2"), ("linear.0", "linear.2")))
        shapes = (((2 * width, width), (2 * width,)), ((width, 2 * width), (width,)))
        body = b""
        for name, (weight, bias) in zip(names, shapes, strict=True):
            body += self.string(f"{name}.weight") + self.tensor(weight)
            body += self.string(f"{name}.bias") + self.tensor(bias)
        return self.named("collections", "OrderedDict") + b")R(" + body + b"u"

    def metadata(self, key: str) -> bytes:
        """Make a value that fits the key, or any other."""
        choices = self.choices
        if choices.rarely(3):
            return self.value(2)
        if key in ("layer_structure", "dropout_structure"):
            items = choices.pick(((1, 2, 1), (1, 1), (1, 2, 2, 1), (0, 0.3, 0), (1,)))
            return b"](" + b"".join(self.scalar(item) for item in items) + b"e"
        if key == "activation_func":
            return self.string(choices.pick(("linear", "relu", "mish", "softsign", "MultiheadAttention")))
        return self.scalar(choices.pick((False, True, 3, "x")))

    # -- values

    def value(self, depth: int) -> bytes:
        """Make any value."""
        choices = self.choices
        self.opcodes += 1
        if depth <= 0 or self.opcodes > 500:
            return self.scalar(choices.pick((None, True, 1, 0.5, "a")))
        kinds: tuple[Callable[[], bytes], ...] = (
            lambda: self.scalar(choices.pick((None, True, False, 0.5, float("nan"), float("inf")))),
            lambda: self.integer(choices.number()),
            lambda: self.string(choices.text()),
            lambda: self.bytes_(choices.raw(choices.below(6))),
            lambda: self.tuple_of([self.value(depth - 1) for _ in range(choices.below(4))]),
            lambda: b"](" + self.several(depth) + choices.pick((b"e", b"e", b"l")),
            lambda: b"](" + self.several(depth) + b"e",
            lambda: b"}(" + self.several(depth) + self.several(depth) + b"u",
            lambda: b"(" + self.several(depth) + choices.pick((b"t", b"d", b"\x91", b"l", b"1N")),
            lambda: b"\x8f(" + self.several(depth) + b"\x90",
            lambda: self.tensor((2, 3)),
            lambda: self.storage("FloatStorage", 4),
            lambda: self.called(depth),
            lambda: self.remembered(depth),
            lambda: self.object_(depth),
            lambda: choices.raw(1),
        )
        return choices.pick(kinds)()

    def several(self, depth: int) -> bytes:
        """Make up to three values in a row."""
        return b"".join(self.value(depth - 1) for _ in range(self.choices.below(4)))

    def scalar(self, value: object) -> bytes:
        """Encode None, a bool, a number or a text."""
        if value is None:
            return b"N"
        if isinstance(value, bool):
            return self.choices.pick(((b"\x88" if value else b"\x89"), b"I01\n" if value else b"I00\n"))
        if isinstance(value, int):
            return self.integer(value)
        if isinstance(value, float):
            return self.choices.pick((b"G" + struct.pack(">d", value), f"F{value}\n".encode()))
        return self.string(str(value))

    def integer(self, value: int) -> bytes:
        """Encode an integer in one of the ways that can hold it."""
        size = (value.bit_length() + 8) // 8
        ways = [b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True) if size < 256 else b"K\x00"]
        if -(1 << 31) <= value < 1 << 31:
            ways.insert(0, b"J" + struct.pack("<i", value))
        if 0 <= value < 256:
            ways.insert(0, b"K" + bytes([value]))
        if 0 <= value < 1 << 16:
            ways.append(b"M" + struct.pack("<H", value))
        if value.bit_length() < 10_000:
            ways += [f"I{value}\n".encode(), f"L{value}L\n".encode()]
        return self.choices.pick(ways)

    def string(self, value: str) -> bytes:
        """Encode a text in one of the possible ways."""
        data = value.encode("utf-8", "surrogatepass")
        ways = [b"X" + struct.pack("<I", len(data)) + data, b"\x8d" + struct.pack("<Q", len(data)) + data]
        if len(data) < 256:
            ways += [b"\x8c" + bytes([len(data)]) + data, b"U" + bytes([len(data)]) + data]
        if value.isidentifier() and value.isascii():
            ways += [f"S'{value}'\n".encode(), f"V{value}\n".encode()]
        if self.choices.rarely(40):
            ways = [b"X" + struct.pack("<I", self.choices.number() & 0xFFFFFFFF) + data]
        return self.choices.pick(ways)

    def bytes_(self, value: bytes) -> bytes:
        """Encode bytes in one of the possible ways."""
        size = len(value)
        return self.choices.pick(
            (
                b"C" + bytes([size]) + value,
                b"B" + struct.pack("<I", size) + value,
                b"\x8e" + struct.pack("<Q", size) + value,
                b"\x96" + struct.pack("<Q", size) + value,
                self.named("_codecs", "encode")
                + self.string(value.decode("latin-1"))
                + self.string("latin1")
                + b"\x86R",
            )
        )

    def tuple_of(self, items: list[bytes]) -> bytes:
        """Encode a tuple, with or without a mark."""
        short = {0: b")", 1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(items))
        if short is not None and not self.choices.rarely(4):
            return b"".join(items) + short
        return b"(" + b"".join(items) + b"t"

    # -- tensors

    def tensor(self, shape: tuple[int, ...]) -> bytes:
        """Make a tensor, sometimes in another tensor's storage or with odd sizes."""
        choices = self.choices
        count = 1
        strides: list[int] = []
        for size in reversed(shape):
            strides.insert(0, count)
            count *= size
        offset, sizes = 0, list(shape)
        if choices.rarely(20):
            offset = choices.number()
        if choices.rarely(20) and sizes:
            sizes[choices.below(len(sizes))] = choices.number()
        if choices.rarely(20) and strides:
            strides[choices.below(len(strides))] = choices.number()
        kind = choices.pick(STORAGES) if choices.rarely(10) else "FloatStorage"
        arguments = [
            self.storage(kind, choices.number() if choices.rarely(20) else count),
            self.integer(offset),
            self.tuple_of([self.integer(size) for size in sizes]),
            self.tuple_of([self.integer(step) for step in strides]),
            b"\x89",
            self.named("collections", "OrderedDict") + b")R",
        ]
        if choices.rarely(30):
            del arguments[choices.below(len(arguments))]
        made = self.named("torch._utils", "_rebuild_tensor_v2") + b"(" + b"".join(arguments) + b"tR"
        if choices.rarely(20):
            parameter = self.named("torch._utils", "_rebuild_parameter")
            return parameter + b"(" + made + b"\x88" + self.named("collections", "OrderedDict") + b")RtR"
        return made

    def storage(self, kind: str, count: int) -> bytes:
        """Make the persistent id of a storage."""
        choices = self.choices
        key = str(choices.below(4)) if choices.rarely(12) else str(len(self.storages))
        self.storages.setdefault(key, (kind, count))
        parts = [
            self.string("storage" if not choices.rarely(40) else choices.text()),
            self.named("torch", kind),
            self.string(key),
            self.string(choices.pick(("cpu", "cpu", "cuda:0", "meta"))),
            self.integer(count),
        ]
        if self.legacy != choices.rarely(40):  # the view that early versions wrote; None in all known files
            parts.append(b"N")
        return b"(" + b"".join(parts) + b"tQ"

    # -- globals, calls, the memo

    def named(self, module: str, name: str) -> bytes:
        """Make a global with one of the two opcodes."""
        if self.choices.rarely(4):
            return self.string(module) + self.string(name) + b"\x93"
        return f"c{module}\n{name}\n".encode()

    def any_global(self) -> bytes:
        """Make a global, usually a known one."""
        return self.named(*self.choices.pick(STRANGE_GLOBALS if self.choices.rarely(3) else KNOWN_GLOBALS))

    def called(self, depth: int) -> bytes:
        """Make a call of a global with any arguments."""
        return self.any_global() + self.choices.pick((b")", b"(" + self.several(depth) + b"t")) + b"R"

    def object_(self, depth: int) -> bytes:
        """Make an object of a class with any of the opcodes, with or without a state."""
        arguments = b"(" + self.several(depth) + b"t"
        made = self.choices.pick(
            (
                self.any_global() + b")\x81",
                self.any_global() + arguments + b"\x81",
                self.any_global() + b")}\x92",
                b"(" + self.any_global() + self.several(depth) + b"o",
                b"(" + self.several(depth) + b"ilab.fuzz.canary\nsing\n",
                b"\x82\x01",
                b"Pid\n",
                b"\x97",
            )
        )
        return made + (self.value(depth - 1) + b"b" if self.choices.rarely(2) else b"")

    def remembered(self, depth: int) -> bytes:
        """Put a value into the memo, or get one from it."""
        choices = self.choices
        if self.memo and choices.rarely(2):
            index = choices.below(self.memo + 1)
            return choices.pick((b"h" + bytes([index % 256]), f"g{index}\n".encode(), b"j" + struct.pack("<I", index)))
        self.memo += 1
        index = self.memo - 1
        put = choices.pick((b"q" + bytes([index % 256]), f"p{index}\n".encode(), b"\x94", b"2"))
        if choices.rarely(6):  # a container that contains itself
            return b"]" + put + b"h" + bytes([index % 256]) + b"a"
        return self.value(depth - 1) + put


METADATA = (
    "layer_structure",
    "activation_func",
    "is_layer_norm",
    "activate_output",
    "use_dropout",
    "dropout_structure",
    "last_layer_dropout",
    "skip_connection",
    "upsample_linear",
    "step",
    "name",
    "sd_checkpoint",
    "optional_info",
)
