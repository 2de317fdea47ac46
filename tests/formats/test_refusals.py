"""Whatever way a pickle names or calls something, the file is refused as unsafe and nothing of it runs."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import hnloader
from hnloader import UnsafeFileError, UnsupportedArchitectureError
from hnloader.formats.checkpoint import LEGACY_MAGIC_NUMBER
from tests.support.builders import simple_tree, write
from tests.support.errors import raises

READERS = {"load": hnloader.load, "inspect": hnloader.inspect}


class Canary:
    """Its class attribute shows whether anything called it."""

    calls = 0

    def __init__(self, *arguments: object) -> None:
        type(self).calls += 1

    def __setstate__(self, state: object) -> None:
        type(self).calls += 1

    @staticmethod
    def sing(*arguments: object) -> str:
        Canary.calls += 1
        return "sung"


sys.modules["canary_of_the_tests"] = sys.modules[__name__]  # how the pickles below reach it
MODULE, CLASS, FUNCTION = "canary_of_the_tests", "Canary", "Canary.sing"


@pytest.fixture(autouse=True)
def silent_canary() -> object:
    Canary.calls = 0
    yield
    assert Canary.calls == 0


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


GLOBAL = f"c{MODULE}\n{CLASS}\n".encode()
STACK_GLOBAL = short(MODULE) + short(FUNCTION) + b"\x93"

# Each leaves one value on the stack. {name: (opcodes, whether Python's own pickle calls the canary for them)}
CALLS: dict[str, tuple[bytes, bool]] = {
    "GLOBAL, not called": (GLOBAL, False),
    "GLOBAL, REDUCE": (GLOBAL + b")R", True),
    "GLOBAL, REDUCE with arguments": (GLOBAL + text("x") + b"\x85R", True),
    "STACK_GLOBAL of a dotted name, REDUCE": (STACK_GLOBAL + b")R", True),
    "STACK_GLOBAL of names from the memo": (
        short(FUNCTION) + b"q\x01" + b"0" + short(MODULE) + b"q\x02" + b"0" + b"h\x02h\x01\x93)R",
        True,
    ),
    "STACK_GLOBAL of a memoised name put twice": (
        short("collections") + b"q\x01" + b"0" + short(MODULE) + b"q\x010h\x01" + short(FUNCTION) + b"\x93)R",
        True,
    ),
    "STACK_GLOBAL of text in all lengths": (
        text(MODULE) + b"\x8d" + struct.pack("<Q", len(FUNCTION)) + FUNCTION.encode() + b"\x93)R",
        True,
    ),
    "STACK_GLOBAL with DUP and POP": (short(MODULE) + short(FUNCTION) + b"20\x93)R", True),
    "INST": (f"(i{MODULE}\n{CLASS}\n".encode(), False),
    "INST with arguments": (b"(" + text("x") + f"i{MODULE}\n{CLASS}\n".encode(), True),
    "OBJ": (b"(" + GLOBAL + b"o", False),
    "OBJ with arguments": (b"(" + GLOBAL + text("x") + b"o", True),
    "NEWOBJ": (GLOBAL + b")\x81", False),
    "NEWOBJ, BUILD": (GLOBAL + b")\x81" + text("state") + b"b", True),
    "NEWOBJ_EX": (GLOBAL + b")}\x92", False),
    "NEWOBJ_EX, BUILD": (GLOBAL + b")}\x92" + text("state") + b"b", True),
    "a call hidden in a popped value": (GLOBAL + b")R0N", True),
    "a call hidden before POP_MARK": (b"(" + GLOBAL + b")R1N", True),
    "a call as a dict key": (b"}" + GLOBAL + b")RNs", True),
    "a call in an OrderedDict": (b"ccollections\nOrderedDict\n)R" + text("a") + GLOBAL + b")Rs", True),
    "BUILD on an OrderedDict with a call as state": (b"ccollections\nOrderedDict\n)R" + GLOBAL + b")Rb", False),
}
# Globals that are dangerous without a canary: the file must be refused for naming them.
NAMED: dict[str, bytes] = {
    "os.system": b"cos\nsystem\n" + text("true") + b"\x85R",
    "posix.system": b"cposix\nsystem\n" + text("true") + b"\x85R",
    "builtins.eval": b"cbuiltins\neval\n" + text("1") + b"\x85R",
    "__builtin__.exec": b"c__builtin__\nexec\n" + text("1") + b"\x85R",
    "builtins.getattr": b"cbuiltins\ngetattr\n" + text("x") + text("y") + b"\x86R",
    "a dotted attribute of an allowed module": short("collections") + short("OrderedDict.fromkeys") + b"\x93)R",
    "a dotted attribute of an allowed class": b"ccollections\nOrderedDict.fromkeys\n)R",
    "an allowed name behind dots": short("torch._utils") + short("os.system") + b"\x93)R",
    "an allowed name of another module": b"cevil\nOrderedDict\n)R",
    "an empty module": short("") + short("eval") + b"\x93)R",
    "torch.load": b"ctorch\nload\n" + text("x.pt") + b"\x85R",
    "torch.hub.load": b"ctorch.hub\nload\n)R",
    "torch.jit.load": b"ctorch.jit\nload\n)R",
    "torch.storage._load_from_bytes": b"ctorch.storage\n_load_from_bytes\nC\x03abc\x85R",
    "torch.serialization.load": b"ctorch.serialization\nload\n)R",
    "torch.utils.data code": b"ctorch.utils._config_module\nload_config\n)R",
    "torch._utils._rebuild_wrapper_subclass": b"ctorch._utils\n_rebuild_wrapper_subclass\n)R",
    "torch._tensor._rebuild_from_type_v2": b"ctorch._tensor\n_rebuild_from_type_v2\n)R",
    "pickle.loads": b"cpickle\nloads\nC\x02N.\x85R",
    "_pickle.loads": b"c_pickle\nloads\nC\x02N.\x85R",
    "runpy": b"crunpy\n_run_code\n)R",
    "copyreg._reconstructor": b"ccopyreg\n_reconstructor\n)R",
    "copyreg.__newobj__": b"ccopyreg\n__newobj__\n)R",
    "functools.partial": b"cfunctools\npartial\n)R",
    "operator.attrgetter": b"coperator\nattrgetter\n" + text("x") + b"\x85R",
    "an extension code": b"\x82\x01",
    "an extension code of two bytes": b"\x83\x01\x01",
    "an extension code of four bytes": b"\x84\x01\x01\x01\x01",
    "a persistent id in text": b"Pcommand\n",
    "a persistent id of another kind": text("module") + text("os") + b"\x86Q",
    "a persistent id with a call": b"(" + text("storage") + b"cos\nsystem\n" + text("0") + text("cpu") + b"K\x00tQ",
    "an out-of-band buffer": b"\x97",
    "calling the result of an allowed call": b"ccollections\nOrderedDict\n)R)R",
    "calling a number": b"K\x01)R",
    "attributes of a class": b"ccollections\nOrderedDict\n}" + text("x") + b"K\x01sb",
    "attributes of a dict": b"}}" + text("__class__") + b"K\x01sb",
    "attributes by slots": b"ccollections\nOrderedDict\n)RN}" + text("__class__") + b"K\x01s\x86b",
}
# What sound files of other kinds hold too: it runs nothing, but is not read.
UNUSUAL: dict[str, bytes] = {
    "a class as a value": b"ccollections\nOrderedDict\n",
    "a dtype": b"ctorch\nfloat16\n",
    "a duration": b"cdatetime\ntimedelta\nK\x01\x85R",
    "a counter": b"ccollections\nCounter\n}\x85R",
    "torch._utils._rebuild_device_tensor_from_numpy": b"ctorch._utils\n_rebuild_device_tensor_from_numpy\n)R",
    "numpy's object arrays": b"cnumpy.core.multiarray\n_reconstruct\n)R",
    "decoding by an odd codec": b"c_codecs\nencode\n" + text("x") + text("zlib") + b"\x86R",
}
HOSTILE = {**{name: code for name, (code, _) in CALLS.items()}, **NAMED}


def in_zip(code: bytes, protocol: int = 2) -> bytes:
    """A file as torch.save writes it, with `code` as a piece of metadata of an otherwise good hypernetwork."""
    buffer = io.BytesIO()
    torch.save(simple_tree(), buffer)
    result = io.BytesIO()
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(result, "w") as changed:
        for info in archive.infolist():
            data = archive.read(info)
            if info.filename.endswith("/data.pkl"):
                assert data.endswith(b".")
                data = b"\x80" + bytes([protocol]) + data[2:-1] + text("optional_info") + code + b"s."
            changed.writestr(info, data)
    return result.getvalue()


def in_legacy(code: bytes) -> bytes:
    head = pickle.dumps(LEGACY_MAGIC_NUMBER, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    return head + b"\x80\x02}K\x08" + code + b"s." + pickle.dumps([], 2)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_every_way_to_reach_code_is_refused(name: str, reader: str) -> None:
    for data in (in_zip(HOSTILE[name]), in_zip(HOSTILE[name], protocol=4), in_legacy(HOSTILE[name])):
        with pytest.raises(UnsafeFileError):
            READERS[reader](io.BytesIO(data))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", UNUSUAL)
def test_inert_globals_are_refused_as_unusual(name: str, reader: str) -> None:
    for data in (in_zip(UNUSUAL[name]), in_zip(UNUSUAL[name], protocol=4)):
        with pytest.raises(UnsupportedArchitectureError):
            READERS[reader](io.BytesIO(data))


@pytest.mark.parametrize("name", [name for name, (_, works) in CALLS.items() if works])
def test_canary_sings_for_an_executing_reader(name: str) -> None:
    pickle.loads(b"\x80\x04" + CALLS[name][0] + b".")
    assert Canary.calls > 0
    Canary.calls = 0


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("protocol", range(6))
def test_bare_pickle_is_refused(protocol: int, reader: str, tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> object:
            return (Canary.sing, ("x",))

    Canary.sing.__module__, Canary.sing.__qualname__ = MODULE, FUNCTION
    path = tmp_path / "style.pt"
    path.write_bytes(pickle.dumps({320: Call()}, protocol))
    with pytest.raises(UnsafeFileError):
        READERS[reader](path)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("legacy", [False, True])
def test_torch_save_of_a_call_is_refused_in_every_protocol(
    protocol: int, legacy: bool, reader: str, tmp_path: Path
) -> None:
    class Call:
        def __reduce__(self) -> object:
            return (Canary.sing, ("x",))

    Canary.sing.__module__, Canary.sing.__qualname__ = MODULE, FUNCTION
    path = tmp_path / "style.pt"
    torch.save(
        simple_tree(optional_info=Call()), path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy
    )
    # Protocol 0 writes the ids of storages as text, which torch itself cannot read; they are refused first.
    with raises(UnsafeFileError, *(["Canary"] if protocol else [])):
        READERS[reader](path)


@pytest.mark.parametrize("protocol", range(1, 6))
@pytest.mark.parametrize("legacy", [False, True])
def test_safe_files_of_every_protocol_load(protocol: int, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    content = simple_tree(optional_info="ü", x={"a": (1, 2.5, None, True, b"bytes", {3}, 10**15, -1)})
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    found = hnloader.load(path)
    assert found.metadata == {key: value for key, value in content.items() if isinstance(key, str)}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", [b"\xff", b"h\xfe", b"]" * 100, b""])
def test_call_before_damage_is_named(damage: bytes, reader: str) -> None:
    """A reader that executes would have run it before it came to the damage."""
    call = b"cos\nsystem\n" + text("true") + b"\x85R0"
    for data in (in_zip(call + damage), in_legacy(call + damage), b"\x80\x04" + call + damage, call + damage):
        with raises(UnsafeFileError, "os.system"):
            READERS[reader](io.BytesIO(data))


def test_nested_pickle_stays_bytes(tmp_path: Path) -> None:
    inner = b"\x80\x04" + CALLS["GLOBAL, REDUCE"][0] + b"."
    path = write(tmp_path / "style.pt", simple_tree(optional_info=inner))
    assert hnloader.load(path).metadata["optional_info"] == inner


def test_data_after_the_pickle_are_not_run() -> None:
    buffer = io.BytesIO(in_zip(b"N"))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("archive/extra.pkl", b"\x80\x04" + CALLS["GLOBAL, REDUCE"][0] + b".")
    assert hnloader.load(buffer).widths == (8,)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_torchscript_archives_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    with raises(UnsafeFileError, "TorchScript"):
        hnloader.load(path)


def test_names_of_unsafe_files_cannot_forge_the_message() -> None:
    code = b"cos\x1b[2J\rsafe\nsystem\n)R"
    with pytest.raises(UnsafeFileError) as caught:
        hnloader.load(io.BytesIO(in_zip(code)))
    assert str(caught.value).isprintable()


def test_full_checkpoint_with_a_call_is_unsafe(tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> object:
            return (Canary.sing, ("x",))

    Canary.sing.__module__, Canary.sing.__qualname__ = MODULE, FUNCTION
    content = {"state_dict": {"model.diffusion_model.x": torch.zeros(1)}, "callbacks": Call()}
    with pytest.raises(UnsafeFileError):
        hnloader.load(write(tmp_path / "model.ckpt", content))


def test_no_module_is_imported_for_a_file(tmp_path: Path) -> None:
    """A fresh interpreter, since here nearly everything is imported already."""
    path = tmp_path / "style.pt"
    path.write_bytes(in_zip(b"cantigravity\nx\n)R"))
    program = (
        "import sys, hnloader\n"
        "before = set(sys.modules)\n"
        "for read in (hnloader.load, hnloader.inspect):\n"
        "    try: read(sys.argv[1])\n"
        "    except hnloader.UnsafeFileError: print('refused')\n"
        "print('antigravity' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["refused", "refused", "False"]
