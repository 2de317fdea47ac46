"""Makes files as an attacker would: each kind small, each with the error that it must end in.

`hostile_files(canary)` builds them all. What is called in them is `builtins.open(canary, "w")` wherever arguments can
be given, so that a reader that executes anything leaves a file behind. Files in the form of a hypernetwork hold a sound
one besides, so that nothing but the hostile part can be the reason for refusing them.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from hnloader.formats.registry import suffixes
from tests.support import costly
from tests.support.builders import simple_tree

LEGACY_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
ALL = ("load", "inspect", "convert", "catalog")
# Readers of tensor data, for files whose harm is there.
WHOLE = ("load", "convert")

UNSAFE, CORRUPT, UNKNOWN = "UnsafeFileError", "CorruptFileError", "UnknownFormatError"
UNSUPPORTED, ANY = "UnsupportedArchitectureError", "HypernetworkError"


@dataclass(frozen=True)
class HostileFile:
    """A file that must be refused.

    Attributes:
        name: what is hostile about it.
        data: its bytes.
        error: name of the error, or of a base of it, that each of `readers` raises.
        suffix: ending of the file's name.
        readers: who must refuse it.
        calls: whether its pickle names something callable, which a scanner for pickles should find.
        runs: whether Python's own `pickle.loads` of its pickle leaves the canary.
        pickle: the pickle in it, where it is one that Python can read.
    """

    name: str
    data: bytes
    error: str
    suffix: str = ".pt"
    readers: tuple[str, ...] = ALL
    calls: bool = False
    runs: bool = False
    pickle: bytes = b""


# -- opcodes


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short(value: str) -> bytes:
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def named(name: str) -> bytes:
    """GLOBAL of "module:attribute"."""
    module, _, attribute = name.partition(":")
    return f"c{module}\n{attribute}\n".encode()


def stacked(module: str, attribute: str) -> bytes:
    return short(module) + short(attribute) + b"\x93"


def integer(value: int) -> bytes:
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + b"(" + b"".join(arguments) + b"tR"


def running(canary: Path) -> dict[str, bytes]:
    """Opcodes that call something in Python's own pickle, each leaving one value on the stack."""
    path, mode = text(str(canary)), text("w")
    given = path + mode
    lines = f"V{canary}\nVw\n".encode()
    shell = text(f"touch '{canary}'")
    opened = named("builtins:open")
    wrapped = pickle.dumps(None, 2)[:2] + called(opened, path, mode) + b"."
    inner = b"B" + struct.pack("<I", len(wrapped)) + wrapped
    return {
        "protocol 0, GLOBAL and REDUCE": opened + b"(" + lines + b"tR",
        "protocol 0 by Python 2's name": named("__builtin__:open") + b"(" + lines + b"tR",
        "protocol 1, GLOBAL and REDUCE": opened + b"(" + given + b"tR",
        "protocol 2, REDUCE of TUPLE2": opened + given + b"\x86R",
        "protocol 4, STACK_GLOBAL": called(stacked("builtins", "open"), given),
        "STACK_GLOBAL of the memo by MEMOIZE": called(
            short("open") + b"\x940" + short("builtins") + b"\x940" + b"h\x01h\x00\x93", given
        ),
        "STACK_GLOBAL of the memo by LONG_BINPUT": called(
            short("open") + b"r\xff\x00\x00\x000" + short("builtins") + b"p300\n0g300\nj\xff\x00\x00\x00\x93", given
        ),
        "STACK_GLOBAL of a memo overwritten": called(
            short("collections") + b"q\x070" + short("builtins") + b"q\x070h\x07" + short("open") + b"\x93", given
        ),
        "STACK_GLOBAL with POP between": called(short("builtins") + short("x") + b"0" + short("open") + b"\x93", given),
        "STACK_GLOBAL with POP_MARK between": called(
            short("builtins") + b"(" + short("OrderedDict") + b"1" + short("open") + b"\x93", given
        ),
        "STACK_GLOBAL of STRING with escapes": called(b"S'\\x62uiltins'\nS'op\\x65n'\n\x93", given),
        "STACK_GLOBAL of UNICODE with escapes": called(b"V\\u0062uiltins\nV\\u006fpen\n\x93", given),
        "STACK_GLOBAL of BINUNICODE8": called(
            b"\x8d" + struct.pack("<Q", 8) + b"builtins" + b"\x8d" + struct.pack("<Q", 4) + b"open\x93", given
        ),
        "a frame that lies about its length": called(b"\x95" + struct.pack("<Q", 4) + opened, given),
        "INST": b"(" + given + b"ibuiltins\nopen\n",
        "OBJ": b"(" + named("io:FileIO") + given + b"o",
        "NEWOBJ then REDUCE": named("io:FileIO") + b")\x810" + called(opened, given),
        "NEWOBJ_EX then REDUCE": named("io:FileIO") + b")}\x920" + called(opened, given),
        "NEWOBJ of a class that reads state": named("functools:partial")
        + opened
        + b"\x85\x81("
        + opened
        + b"(t}Ntb("
        + given
        + b"tR",
        "BUILD of functools.partial's state": named("functools:partial")
        + named("builtins:len")
        + b"\x85R("
        + opened
        + b"("
        + given
        + b"t}Ntb)R",
        "BUILD of an object's dictionary": called(opened, given)
        + b"0"
        + named("types:SimpleNamespace")
        + b")R}"
        + text("x")
        + b"K\x01sb",
        "a dotted name": called(stacked("codecs", "builtins.open"), given),
        "a dotted name through a module's import": called(stacked("tempfile", "_os.system"), shell),
        "a dotted name through an allowed module": called(stacked("collections", "_sys.modules.__class__"))
        + b"0"
        + called(opened, given),
        "getattr on a module's attribute": called(
            called(named("builtins:getattr"), called(named("builtins:__import__"), text("os")), text("system")), shell
        ),
        "operator.attrgetter": called(
            called(
                called(named("operator:attrgetter"), text("system")), called(named("builtins:__import__"), text("os"))
            ),
            shell,
        ),
        "operator.methodcaller": called(
            called(named("operator:methodcaller"), text("system"), shell),
            called(named("builtins:__import__"), text("os")),
        ),
        "functools.reduce": called(named("functools:reduce"), opened, b"(" + path + mode + b"t"),
        "builtins.map in a list": called(
            named("builtins:list"), called(named("builtins:map"), opened, path + b"\x85", mode + b"\x85")
        ),
        "eval": called(named("builtins:eval"), text(f"open({str(canary)!r}, 'w')")),
        "exec": called(named("builtins:exec"), text(f"open({str(canary)!r}, 'w')")),
        "os.system": called(named("os:system"), shell),
        "posix.system": called(named("posix:system"), shell),
        "subprocess.call": called(named("subprocess:call"), b"(" + text("touch") + path + b"l"),
        "subprocess.Popen by OBJ": b"(" + named("subprocess:Popen") + b"(" + text("touch") + path + b"lo",
        "os.popen": called(named("os:popen"), shell),
        "pty.spawn": called(named("pty:spawn"), b"(" + text("touch") + path + b"l"),
        "runpy": called(
            named("runpy:_run_code"),
            called(named("builtins:compile"), text(f"open({str(canary)!r}, 'w')"), text("x"), text("exec")),
            b"}",
        ),
        "code.InteractiveInterpreter": called(
            stacked("code", "InteractiveInterpreter.runcode"),
            called(named("code:InteractiveInterpreter")),
            text(f"open({str(canary)!r}, 'w')"),
        ),
        "timeit": called(
            named("timeit:timeit"),
            text(f"open({str(canary)!r}, 'w')"),
            text("pass"),
            named("timeit:default_timer"),
            b"K\x01",
        ),
        "cProfile.run": called(named("cProfile:run"), text(f"open({str(canary)!r}, 'w')"), path),
        "trace.Trace.run": called(
            stacked("trace", "Trace.run"),
            called(named("trace:Trace"), b"K\x00K\x00"),
            text(f"open({str(canary)!r}, 'w')"),
        ),
        "pydoc.pipepager": called(named("pydoc:pipepager"), text("x"), text(f"cat > '{canary}'")),
        "logging.FileHandler": called(named("logging:FileHandler"), path),
        "a dotted name by GLOBAL": called(named("tempfile:_io.open"), given),
        "asyncio's subprocess by a submodule": called(
            stacked("asyncio.unix_events", "subprocess.call"), b"(" + text("touch") + path + b"l"
        ),
        "shelve.open": called(named("shelve:open"), path),
        "sqlite3.connect": called(named("sqlite3:connect"), path),
        "shutil.copyfile": called(named("shutil:copyfile"), text("/dev/null"), path),
        "a pickle in a pickle": called(named("pickle:loads"), inner),
        "a pickle in a pickle by _pickle": called(named("_pickle:loads"), inner),
        "torch.utils.collect_env.run": called(named("torch.utils.collect_env:run"), shell),
        "torch.serialization's os": called(stacked("torch.serialization", "os.system"), shell),
        "torch._utils with a dotted name": called(stacked("torch._utils", "traceback.linecache.os.system"), shell),
        "numpy's os": called(stacked("numpy.testing._private.utils", "os.system"), shell),
        "a call that is popped": called(opened, given) + b"0N",
        "a call before POP_MARK": b"(" + called(opened, given) + b"1N",
        "a call as a key": b"}" + called(opened, given) + b"Ns",
        "a call in a set": b"\x8f(" + called(opened, given) + b"\x90",
        "a call as the argument of an allowed one": called(named("torch:Size"), b"(" + called(opened, given) + b"0t"),
    }


def naming() -> dict[str, bytes]:
    """Opcodes that Python may not get through, but that a file may not hold all the same."""
    return {
        "an extension code of one byte": b"\x82\x01",
        "an extension code of two bytes": b"\x83\x01\x02",
        "an extension code of four bytes": b"\x84\x01\x02\x03\x04",
        "a persistent id in text": b"Pos.system\n",
        "a persistent id of another kind": b"(" + text("os") + text("system") + b"tQ",
        "a storage of a type that is a call": b"("
        + text("storage")
        + named("os:system")
        + text("0")
        + text("cpu")
        + b"K\x80tQ",
        "an out-of-band buffer": b"\x97",
        "a read-only out-of-band buffer": b"\x97\x98",
        "pip.main": called(named("pip:main"), b"(" + text("install") + text("x") + b"l"),
        "ensurepip._run_pip": called(named("ensurepip:_run_pip"), b"(" + text("install") + b"l"),
        "ssl.get_server_certificate": called(named("ssl:get_server_certificate"), text("localhost") + b"K\x01\x86"),
        "ctypes.CDLL": called(named("ctypes:CDLL"), text("libc.so.6")),
        "marshal.loads and a function": called(
            named("types:FunctionType"), called(named("marshal:loads"), b"C\x01N"), b"}"
        ),
        "importlib.import_module": called(named("importlib:import_module"), text("antigravity")),
        "socket": called(named("socket:create_connection"), text("localhost") + b"K\x01\x86"),
        "urllib": called(named("urllib.request:urlopen"), text("http://localhost:1/")),
        "webbrowser": called(named("webbrowser:open"), text("about:blank")),
        "os.unlink": called(named("os:unlink"), text("none")),
        "torch.load": called(named("torch:load"), text("other.pt")),
        "torch.storage._load_from_bytes": called(named("torch.storage:_load_from_bytes"), b"C\x02N."),
        "torch.hub.load": called(named("torch.hub:load"), text("a/b"), text("c")),
        "torch.jit.load": called(named("torch.jit:load"), text("other.pt")),
        "torch.ops.load_library": called(stacked("torch", "ops.load_library"), text("evil.so")),
        "torch.classes": called(stacked("torch", "classes.load_library"), text("evil.so")),
        "torch.serialization.add_safe_globals": called(named("torch.serialization:add_safe_globals"), b"]"),
        "torch.utils.cpp_extension.load": called(named("torch.utils.cpp_extension:load"), text("x"), text("x.cpp")),
        "torch.fx's guards": called(
            stacked("torch.fx.experimental.symbolic_shapes", "ShapeEnv.evaluate_guards_expression"), text("1"), b"]"
        ),
        "torch's inductor": called(named("torch._inductor.codecache:PyCodeCache.load"), text("1")),
        "torch's tensors of subclasses": called(named("torch._tensor:_rebuild_from_type_v2")),
        "numpy's arrays of objects": called(named("numpy.core.multiarray:_reconstruct"))
        + b"0"
        + called(named("os:system"), text("true")),
        "a name with escape sequences": named("os:\x1b[2J\x1b]0;x\x07system") + b")R",
        "a name of right-to-left text": called(stacked("os", "\u202esystem")),
        "a name of HTML": called(stacked("os", "<script>alert(1)</script>")),
        "a call before damage": called(named("os:system"), text("true")) + b"0\xff",
    }


def unusual() -> dict[str, bytes]:
    """Opcodes of sound files of other kinds: nothing in them runs, and no hypernetwork holds them."""
    return {
        "torch._utils._rebuild_sparse_tensor": called(named("torch._utils:_rebuild_sparse_tensor")),
        "torch._utils._rebuild_qtensor": called(named("torch._utils:_rebuild_qtensor")),
        "torch._utils._rebuild_meta_tensor_no_storage": called(named("torch._utils:_rebuild_meta_tensor_no_storage")),
        "torch._utils._rebuild_nested_tensor": called(named("torch._utils:_rebuild_nested_tensor")),
        "complex storages": b"("
        + text("storage")
        + named("torch:ComplexFloatStorage")
        + text("0")
        + text("cpu")
        + b"K\x08tQ",
        "quantized storages": b"("
        + text("storage")
        + named("torch:QInt8Storage")
        + text("0")
        + text("cpu")
        + b"K\x08tQ",
    }


# -- containers


def saved(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def rezipped(
    data: bytes,
    change: Callable[[str, bytes], bytes | None] = lambda name, content: content,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(result, "w", compression) as changed:
        for info in archive.infolist():
            content = change(info.filename, archive.read(info))
            if content is not None:
                changed.writestr(info.filename, content)
    return result.getvalue()


def with_pickle(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    return rezipped(data, lambda name, content: change(content) if name.endswith("data.pkl") else content)


def in_zip(good: bytes, code: bytes) -> bytes:
    """The sound file `good` with one more key, `optional_info`, whose value `code` makes."""
    return with_pickle(good, lambda content: b"\x80\x04" + content[2:-1] + text("optional_info") + code + b"s.")


def in_legacy(code: bytes, keys: object = ()) -> bytes:
    head = pickle.dumps(LEGACY_MAGIC_NUMBER, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    return head + b"\x80\x02}K\x08" + code + b"s." + pickle.dumps(list(keys), 2)  # type: ignore[call-overload]


def tensor(
    shape: bytes, stride: bytes, offset: bytes = b"K\x00", count: bytes = b"K\x80", kind: str = "Float"
) -> bytes:
    """A tensor on the first storage, each part as the opcodes that make it."""
    storage = b"(" + text("storage") + named(f"torch:{kind}Storage") + text("0") + text("cpu") + count + b"tQ"
    rest = offset + shape + stride + b"\x89" + named("collections:OrderedDict") + b")R"
    return named("torch._utils:_rebuild_tensor_v2") + b"(" + storage + rest + b"tR"


def entry(data: bytes, member: bytes, field: int, layout: str, value: int) -> bytes:
    """The archive with one field of a member's entry in the directory changed."""
    changed = bytearray(data)
    start = changed.rindex(b"PK\x01\x02", 0, changed.rindex(member))
    struct.pack_into(layout, changed, start + field, value)
    return bytes(changed)


def local(data: bytes, member: bytes, replacement: bytes) -> bytes:
    """The archive with a member's name in its local header changed, that in the directory not."""
    at = data.index(member)
    return data[:at] + replacement + data[at + len(member) :]


def with_member(data: bytes, name: str, content: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    result = io.BytesIO(data)
    with zipfile.ZipFile(result, "a", compression) as archive:
        archive.writestr(zipfile.ZipInfo(name), content, compression)
    return result.getvalue()


def safetensors_file(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(body) if size is None else size) + body + data


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts)


# -- the corpus


def hostile_files(canary: Path) -> Iterator[HostileFile]:
    """Every kind, once."""
    good = rezipped(saved(simple_tree()))
    yield from _pickles(good, canary)
    yield from _zips(good, canary)
    yield from _tensors(good)
    yield from _metadata(good)
    yield from _legacy(canary)
    yield from _safetensors()
    yield from _compositions()
    yield from _images(canary)


def costly_files() -> Iterator[HostileFile]:
    """Files that are large or that unfold; who reads them may refuse them or not, but within the limits."""
    good = rezipped(saved(simple_tree()))
    for name, code in costly.pickles().items():
        yield HostileFile(f"costly: {name}", in_zip(good, code), ANY, readers=())
    for name, data in costly.files().items():
        yield HostileFile(f"costly: {name}", data, ANY, readers=())


def _pickles(good: bytes, canary: Path) -> Iterator[HostileFile]:
    for name, code in running(canary).items():
        bare = (b"" if name.startswith("protocol 0") else b"\x80\x04") + code + b"."
        # MEMOIZE numbers by what was put before, which differs inside of another pickle.
        data = bare if "MEMOIZE" in name else in_zip(good, code)
        yield HostileFile(name, data, UNSAFE, calls=True, runs=True, pickle=bare)
    for name, code in naming().items():
        yield HostileFile(name, in_zip(good, code), UNSAFE, calls=True)
    for name, code in unusual().items():
        yield HostileFile(name, in_zip(good, code), ANY)
    once = running(canary)["protocol 2, REDUCE of TUPLE2"]
    for protocol in range(6):
        start = b"" if protocol < 2 else b"\x80" + bytes([protocol])
        bare = start + once + b"."
        yield HostileFile(f"bare pickle of protocol {protocol}", bare, UNSAFE, calls=True, runs=True, pickle=bare)
    for suffix in sorted({*suffixes()} - {".pt"}):
        bare = b"\x80\x04" + once + b"."
        yield HostileFile(f"pickle named {suffix}", bare, ANY, suffix, calls=True, runs=True, pickle=bare)


def _zips(good: bytes, canary: Path) -> Iterator[HostileFile]:
    call = b"\x80\x02" + running(canary)["protocol 2, REDUCE of TUPLE2"] + b"."
    evil = in_zip(good, call[2:-1])
    pickled = b"archive/data.pkl"
    yield HostileFile("zip bomb in a storage", with_member(good, "archive/data/9", bytes(4 << 20), 8), UNSAFE)
    yield HostileFile(
        "zip bomb in the pickle",
        rezipped(good, lambda n, c: bytes(32 << 20) if n.endswith("data.pkl") else c, 8),
        UNSAFE,
    )
    yield HostileFile("zip members that overlap", entry(good, b"archive/data/1", 42, "<I", 0), UNSAFE)
    yield HostileFile("zip member behind the end", entry(good, b"archive/data/1", 42, "<I", 1 << 30), UNSAFE)
    yield HostileFile(
        "zip pickle renamed in its local header", local(evil, pickled, b"archive/data.txt"), ANY, calls=True
    )
    yield HostileFile(
        "zip storage renamed in its local header",
        local(good, b"archive/data/0", b"archive/data/7"),
        UNSAFE,
        readers=WHOLE,
    )
    for name in ("../../evil.py", "/etc/evil", "C:\\evil.exe", "archive\\..\\..\\evil", "archive/../../evil"):
        yield HostileFile(f"zip member {name}", with_member(good, name, b"x"), UNSAFE)
    twice = good.replace(b"archive/data/1", b"archive/data/0")
    yield HostileFile("zip members of one name", twice, UNSAFE)
    yield HostileFile("zip with two pickles", with_member(good, "b/data.pkl", call), ANY, calls=True)
    yield HostileFile(
        "zip with two pickles, cased differently", with_member(good, "archive/DATA.PKL", call), UNSAFE, calls=True
    )
    yield HostileFile("zip with TorchScript's code", with_member(good, "archive/code/x.py", b"x"), UNSAFE)
    yield HostileFile("zip with an encrypted pickle", entry(evil, pickled, 8, "<H", 1), ANY, calls=True)
    yield HostileFile(
        "zip with a storage said to be patched", entry(good, b"archive/data/0", 8, "<H", 0x20), ANY, readers=WHOLE
    )
    yield HostileFile("zip with a wrong CRC of the pickle", entry(evil, pickled, 16, "<I", 1), ANY, calls=True)
    yield HostileFile(
        "zip with a wrong CRC of a storage", entry(good, b"archive/data/0", 16, "<I", 1), UNSAFE, readers=WHOLE
    )
    yield HostileFile("zip with an unknown compression", entry(evil, pickled, 10, "<H", 99), ANY, calls=True)
    yield HostileFile("zip with sizes of 4 GiB", entry(good, b"archive/data/0", 24, "<I", 0xFFFFFFFE), ANY)
    yield HostileFile("zip64 without its field", entry(good, b"archive/data/0", 24, "<I", 0xFFFFFFFF), ANY)
    yield HostileFile("zip64 with huge sizes", _zip64(good), ANY)
    end = good.rindex(b"PK\x05\x06")
    yield HostileFile(
        "zip with a declared huge directory", good[: end + 12] + b"\xff\xff\xff\x7f" + good[end + 16 :], UNSAFE
    )
    yield HostileFile(
        "zip with a declared offset elsewhere",
        good[: end + 16] + b"\xff\xff\xff\x7f" + good[end + 20 :],
        UNSAFE,
    )
    yield HostileFile("zip without its directory", good[:end], CORRUPT)
    yield HostileFile("zip with a call before it", call + good, UNSAFE, calls=True, runs=True, pickle=call)
    yield HostileFile("zip with text before it", b"#!/bin/sh\nexit\n" + good, UNKNOWN)
    yield HostileFile("zip of files that torch did not write", with_member(b"", "setup.py", b"x"), UNKNOWN)
    yield HostileFile("zip of a zip", with_member(b"", "style.pt", evil), UNKNOWN)


def _zip64(good: bytes) -> bytes:
    result = io.BytesIO(good)
    with zipfile.ZipFile(result, "a") as archive:
        archive.writestr("archive/data/9", b"x")
        info = archive.getinfo("archive/data/9")
        info.file_size = info.compress_size = 1 << 62
    return result.getvalue()


def _tensors(good: bytes) -> Iterator[HostileFile]:
    one, huge = b"K\x01\x85", integer(1 << 63)
    lies = {
        "larger than its storage": tensor(b"K\xff\x85", one),
        "strides beyond its storage": tensor(b"K\x02K\x02\x86", b"K\x7fK\x02\x86"),
        "offset beyond its storage": tensor(one, one, offset=b"K\x80"),
        "negative offset": tensor(one, one, offset=b"J\xff\xff\xff\xff"),
        "negative size": tensor(b"J\xff\xff\xff\xff\x85", one),
        "negative stride": tensor(b"K\x02\x85", b"J\xff\xff\xff\xff\x85"),
        "one value repeated by stride 0": tensor(b"M\xff\xff\x85", b"K\x00\x85"),
        "2^63 values": tensor(huge + b"\x85", one),
        "2^63 values times nothing": tensor(b"K\x00" + huge + b"\x86", b"K\x01K\x01\x86"),
        "2^32 times 2^32 values": tensor((integer(1 << 32)) * 2 + b"\x86", b"K\x01K\x01\x86"),
        "stride of 2^63": tensor(b"K\x00\x85", huge + b"\x85"),
        "storage of 2^63 values": tensor(one, one, count=huge),
        "storage of fewer values than the file holds": tensor(one, one, count=b"K\x01"),
        "storage in two types": tensor(one, one, kind="Half"),
        "sizes of text": tensor(text("a") + b"\x85", one),
        "sizes of None": tensor(b"N", one),
        "seventeen dimensions": tensor(b"(" + b"K\x01" * 17 + b"t", b"(" + b"K\x01" * 17 + b"t"),
        "more sizes than strides": tensor(b"K\x01K\x01\x86", one),
    }
    for name, code in lies.items():
        yield HostileFile(f"tensor: {name}", in_zip(good, code), CORRUPT)
    away = rezipped(good, lambda name, content: None if name.endswith("data/1") else content)
    yield HostileFile("tensor: storage is not in the file", away, CORRUPT)
    out = with_pickle(good, lambda content: content.replace(text("1") + b"q", text("../../x") + b"q"))
    yield HostileFile("tensor: storage key that is a path", out, CORRUPT)
    for name, value in (("NaN", float("nan")), ("infinity", float("inf"))):
        content = simple_tree()
        next(iter(content[8][0].values())).view(-1)[3] = value  # type: ignore[index]
        yield HostileFile(f"tensor: {name}", saved(content), CORRUPT, readers=WHOLE)
    for name, kind in {"complex": torch.complex64, "text for numbers": torch.uint8, "integers": torch.int64}.items():
        content = simple_tree()
        content[8] = tuple({k: t.to(kind) for k, t in side.items()} for side in content[8])  # type: ignore[attr-defined]
        yield HostileFile(f"tensor: {name}", saved(content), ANY)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates quantized tensors and calls sparse ones a beta
        others = _other_tensors()
    for name, value in others.items():
        yield HostileFile(f"tensor: {name}", saved({**simple_tree(), "extra": value}), ANY)
    repeated = saved({**simple_tree(), "x": [torch.zeros(5000)] * 1})
    shared = torch.zeros(10_000)
    views = [shared[i:] for i in range(50)]
    yield HostileFile("tensor: fifty views of one storage", saved({**simple_tree(), "x": views}), CORRUPT)
    yield HostileFile("tensor: storage cut short", repeated[: len(repeated) // 2], CORRUPT)
    yield HostileFile("tensor: sizes of zero", saved({8: ({"linear.0.weight": torch.zeros(0, 8)},) * 2}), ANY)
    yield HostileFile("tensor: width of 2^63", saved({**simple_tree(), 1 << 63: simple_tree()[8]}), ANY)


def _other_tensors() -> dict[str, torch.Tensor]:
    return {
        "sparse": torch.eye(8).to_sparse(),
        "quantized": torch.quantize_per_tensor(torch.eye(8), 0.1, 0, torch.qint8),
        "meta": torch.empty(8, 8, device="meta"),
        "sparse in rows": torch.eye(8).to_sparse_csr(),
    }


def _metadata(good: bytes) -> Iterator[HostileFile]:
    laughs = b"K\x00q\x00" + b"".join(
        b"(" + (b"h" + bytes([level - 1])) * 10 + b"tq" + bytes([level]) for level in range(1, 30)
    )
    codes = {
        "nested 100,000 deep": b"]" * 100_000 + b"a" * 99_999,
        "tuples nested 100,000 deep": b"N" + b"\x85" * 100_000,
        "a list that contains itself": b"]q\xf0h\xf0a",
        "a billion values": b"(" + laughs + b"t",
        "more opcodes than any file needs": b"N0" * 260_000 + b"N",
        "text that is cut off": b"X\xff\xff\xff\x7fabc",
        "bytes of 2^63": b"\x8e" + b"\xff" * 7 + b"\x7fabc",
        "an integer of a million digits": b"I" + b"9" * 1_000_000 + b"\n",
        "an integer of 2 GiB": b"\x8b\xff\xff\xff\x7f",
        "keys of equal hashes": b"}("
        + b"".join(integer(k * ((1 << 61) - 1) << 8) + b"N" for k in range(1, 500))
        + b"u",
        "a memo that was never put": b"h\xf9",
        "a mark that was never put": b"t",
        "an unknown opcode": b"\xff",
    }
    for name, code in codes.items():
        yield HostileFile(f"metadata: {name}", in_zip(good, code), CORRUPT)
    wrong: dict[str, dict[str, object]] = {
        "structure of text": {"layer_structure": "1,2,1"},
        "structure of huge numbers": {"layer_structure": [1, 1e300, 1]},
        "structure of NaN": {"layer_structure": [1, float("nan"), 1]},
        "structure of a dict": {"layer_structure": {"a": 1}},
        "activation that is a path": {"activation_func": "../../os.system"},
        "activation that is a number": {"activation_func": 7},
        "activation that is code": {"activation_func": "__import__('os').system('true')"},
        "dropout of text": {"dropout_structure": ["a", "b", "c"]},
        "norm that is a list": {"is_layer_norm": [[]]},
    }
    for name, keys in wrong.items():
        yield HostileFile(f"metadata: {name}", saved(simple_tree(**keys)), ANY)


def _legacy(canary: Path) -> Iterator[HostileFile]:
    call = running(canary)["protocol 2, REDUCE of TUPLE2"]
    bare = b"\x80\x02" + call + b"."
    yield HostileFile("legacy: a call", in_legacy(call), UNSAFE, calls=True)
    head = pickle.dumps(LEGACY_MAGIC_NUMBER, 2) + pickle.dumps(1001, 2)
    system = pickle.dumps({"little_endian": True}, 2)
    yield HostileFile(
        "legacy: a call in the system's pickle", head + bare + pickle.dumps({}, 2) * 2, UNSAFE, calls=True
    )
    yield HostileFile(
        "legacy: a call among the storage keys", head + system + pickle.dumps({8: 1}, 2) + bare, UNSAFE, calls=True
    )
    yield HostileFile(
        "legacy: a module's source",
        in_legacy(b"(" + text("module") + named("os:system") + text("f") + text("s") + b"tQ"),
        UNSAFE,
        calls=True,
    )
    one = b"K\x01\x85"
    for name, code in {
        "negative offset": tensor(one, one, offset=b"J\xff\xff\xff\xff"),
        "negative stride": tensor(b"K\x02\x85", b"J\xff\xff\xff\xff\x85"),
        "view beyond its storage": tensor(b"K\xff\x85", one),
        "storage of 2^62 values": tensor(one, one, count=integer(1 << 62)),
        "storage cut off": tensor(one, one),
    }.items():
        yield HostileFile(f"legacy: {name}", in_legacy(code, ["0"]) + struct.pack("<q", 128) + bytes(64), CORRUPT)
    yield HostileFile(
        "legacy: storage of another size",
        in_legacy(tensor(one, one), ["0"]) + struct.pack("<q", 1 << 60) + bytes(512),
        CORRUPT,
    )
    yield HostileFile("legacy: keys of other storages", in_legacy(tensor(one, one), ["../0"]) + bytes(600), CORRUPT)
    yield HostileFile(
        "legacy: another protocol",
        pickle.dumps(LEGACY_MAGIC_NUMBER, 2) + pickle.dumps(9, 2) + system + pickle.dumps({}, 2) * 2,
        CORRUPT,
    )


def _safetensors() -> Iterator[HostileFile]:
    def file(name: str, data: bytes, error: str = ANY) -> HostileFile:
        return HostileFile(f"safetensors: {name}", data, error, ".safetensors")

    float32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    sides = "8.k.linear.0.weight"
    yield file("header of 2^63 bytes", safetensors_file({}, size=1 << 63))
    yield file("header larger than the file", safetensors_file({}, size=1 << 20))
    yield file("header of 100 MiB", safetensors_file({}, size=100 << 20))
    yield file("header of other text than JSON", safetensors_file(b"{" * 40))
    yield file("header nested deeply", safetensors_file(b'{"a":' * 5000 + b"1" + b"}" * 5000))
    yield file("header of a list", safetensors_file([]))
    yield file("header that is not UTF-8", safetensors_file(b'{"\xff\xfe": 1}'))
    yield file("tensors that overlap", safetensors_file({sides: float32, "8.v.linear.0.weight": float32}, bytes(8)))
    yield file("a hole between tensors", safetensors_file({sides: {**float32, "data_offsets": [8, 16]}}, bytes(16)))
    yield file("offsets behind the end", safetensors_file({sides: {**float32, "data_offsets": [0, 1 << 40]}}, bytes(8)))
    yield file("offsets backwards", safetensors_file({sides: {**float32, "data_offsets": [8, 0]}}, bytes(8)))
    yield file("negative offsets", safetensors_file({sides: {**float32, "data_offsets": [-8, 0]}}, bytes(8)))
    yield file("negative shape", safetensors_file({sides: {**float32, "shape": [-1, -2]}}, bytes(8)))
    yield file("shape of 2^63", safetensors_file({sides: {**float32, "shape": [1 << 63]}}, bytes(8)))
    yield file(
        "shape whose product wraps around",
        safetensors_file({sides: {**float32, "shape": [1 << 32, 1 << 32, 2]}}, bytes(8)),
    )
    yield file("unknown dtype", safetensors_file({sides: {**float32, "dtype": "OBJECT"}}, bytes(8)))
    key = json.dumps(sides) + ": " + json.dumps(float32)
    yield file("a key twice", safetensors_file(("{" + key + ", " + key + "}").encode(), bytes(8)))
    meta = {"hypernetwork": '{"layout": 1, "extra": ' + "[" * 5000 + "]" * 5000 + "}"}
    yield file("metadata nested deeply", safetensors_file({"__metadata__": meta, sides: float32}, bytes(8)))
    yield file("metadata of numbers", safetensors_file({"__metadata__": {"hypernetwork": 1}, sides: float32}, bytes(8)))
    yield file("metadata that is a list", safetensors_file({"__metadata__": [], sides: float32}, bytes(8)))
    yield file("width of many digits", safetensors_file({"9" * 4000 + ".k.linear.0.weight": float32}, bytes(8)))
    yield file("data behind its tensors", safetensors_file({sides: float32}, bytes(8) + b"\x80\x02N."))


def _compositions() -> Iterator[HostileFile]:
    def file(name: str, data: bytes) -> HostileFile:
        return HostileFile(f"hns: {name}", data, ANY, ".hns")

    yield file("nested deeply", b"[" * 50_000 + b"]" * 50_000)
    yield file("a member outside of the folder", json.dumps({"model": ["../../../etc/passwd"]}).encode())
    yield file("not text", b"\xff\xfe\x00\x01" * 20)
    yield file("a call", b"__import__('os').system('true')")


def _images(canary: Path) -> Iterator[HostileFile]:
    call = b"\x80\x02" + running(canary)["protocol 2, REDUCE of TUPLE2"] + b"."
    yield HostileFile(
        "image: a decompression bomb", png(60_000, 60_000, (b"IDAT", zlib.compress(bytes(1 << 20)))), UNKNOWN
    )
    yield HostileFile(
        "image: text chunk that unpacks to much",
        png(1, 1, (b"zTXt", b"x\0\0" + zlib.compress(bytes(8 << 20)))),
        UNKNOWN,
    )
    yield HostileFile("image: a pickle behind it", png(1, 1) + call, UNKNOWN)
    yield HostileFile(
        "image: embedded embedding's JSON", png(1, 1, (b"tEXt", b"sd-ti-embedding\0" + b"{" * 4000)), UNKNOWN
    )
