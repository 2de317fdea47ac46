"""Files that Python's unpicklers, numpy or torch read differently are found or refused."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy
import pytest
import torch

import hnloader
from hnloader import HypernetworkError, UnsafeFileError
from hnloader.formats.source import open_source
from hnloader.formats.zip_archive import inflated
from hnloader.scanning import Scan as Found
from hnloader.scanning import scan
from tests.support.builders import simple_tree
from tests.support.errors import raises
from tests.support.hostile import called, in_zip, named, rezipped, saved, text

CALL = called(named("os:system"), text("true"))


def scanned(data: bytes, folder: Path, name: str = "file.pt") -> Found:
    path = folder / name
    path.write_bytes(data)
    return scan(path)


def with_members(*extra: tuple[str, bytes]) -> bytes:
    """A sound hypernetwork with members more."""
    result = io.BytesIO(rezipped(saved(simple_tree())))
    with zipfile.ZipFile(result, "a") as archive:
        for name, content in extra:
            archive.writestr(name, content)
    return result.getvalue()


class Noting(pickle.Unpickler):
    """Python's own unpickler, in C; notes the names that it imports instead."""

    def find_class(self, module: str, name: str) -> object:
        self.names = [*getattr(self, "names", []), f"{module}.{name}"]
        return lambda *arguments: None


# -- lines with a number


@pytest.mark.parametrize("prefix", [b"", b"\x80\x02"])
@pytest.mark.parametrize(
    "line",
    [b"I1\0\n", b"I1\0x\n", b"I\0x\n", b"L1\0x\n", b"L7\0L\n", b"F1\0x\n", b"F1.5\0\n", b"Np1\0x\n", b"Np1\n0g1\0x\n"],
)
def test_zero_byte_ends_a_number_as_in_c(line: bytes, prefix: bytes, tmp_path: Path) -> None:
    data = prefix + line + b"0" + CALL + b"."
    reader = Noting(io.BytesIO(data))
    reader.load()
    assert reader.names == ["os.system"]
    found = scanned(data, tmp_path)
    assert found.verdict == "suspicious" and found.callables == ["os.system"]


@pytest.mark.parametrize(
    "line", [b"g1\x1c\n", b"p+_\n", b"p_\n", b"g-_1\n", b"p\x1f1\n", b"g\xd9\xa1\n", b"p\n", b"I_\n"]
)
def test_line_similar_to_a_number_raises_nothing(line: bytes, tmp_path: Path) -> None:
    assert scanned(b"Np1\n" + line + b".", tmp_path).verdict in ("not a hypernetwork", "unreadable")


# -- findings


@pytest.mark.parametrize("call", [CALL, called(named("torch:FloatStorage"), text("x"))])
def test_many_imports_do_not_hide_a_call(call: bytes, tmp_path: Path) -> None:
    words = b"".join(b"cword\nx%d\n0" % number for number in range(3_000))
    data = words + call + b" and so on"
    for found in (scanned(data, tmp_path), scanned(with_members(("archive/notes", data)), tmp_path)):
        assert found.verdict == "suspicious" and len(found.findings) == 1


# -- numpy


def dtype(code: str, *state: object) -> bytes:
    """The opcodes of a dtype and of BUILD with a state."""
    parts = b"".join(pickle.dumps(part, 2)[2:-1] for part in state)
    return called(named("numpy:dtype"), text(code), b"\x89", b"\x88") + b"(" + parts + b"tb"


PLAIN_STATE = (3, "<", None, None, None, -1, -1)


@pytest.mark.parametrize(
    "opcodes",
    [
        dtype("O8", *PLAIN_STATE, 0),  # objects without the flags that say so: bytes become addresses
        dtype("V8", 3, "|", None, ("a",), {"a": 0}, 8, 1, 0),
        dtype("V8", 3, "|", ("x", (1,)), None, None, 8, 1, 0),
        dtype("f4", *PLAIN_STATE, 63),
        dtype("f4", 3, "<", None, None, None, 400, -1, 0),
        dtype("U1", 3, "<", None, None, None, 4_000, 4, 8),
        dtype("U1", 3, "<", None, None, None, 4, 0, 8),
        dtype("O8,f4", *PLAIN_STATE, 63),
        called(named("numpy:dtype"), text("O8")) + b")b",
        called(named("torch._tensor:_rebuild_from_type_v2"), named("numpy:dtype"), named("numpy:dtype"), b")", b")"),
    ],
)
def test_dtype_that_makes_addresses_of_bytes_is_found(opcodes: bytes, tmp_path: Path) -> None:
    assert scanned(b"\x80\x02" + opcodes + b".", tmp_path, "file.pkl").verdict == "suspicious"
    data = in_zip(rezipped(saved(simple_tree())), opcodes)
    assert scanned(data, tmp_path).verdict == "suspicious"
    with pytest.raises(UnsafeFileError):
        hnloader.load(io.BytesIO(data))


@pytest.mark.parametrize("protocol", range(6))
def test_plain_arrays_and_scalars_are_not_suspicious(protocol: int, tmp_path: Path) -> None:
    kinds = ("?", "i1", "u2", ">i4", "f2", "<f4", ">f8", "c8", "c16", "g", "S3", "U5", "V4", "M8[D]", "m8[s]", "O")
    values = [numpy.zeros(2, kind) for kind in kinds] + [numpy.ones((2, 3), "f4", order="F")]
    values += [numpy.zeros(1, kind)[0] for kind in kinds if kind not in ("O", "V4")]
    found = scanned(pickle.dumps({"values": values, "type": numpy.float32}, protocol), tmp_path, "values.pkl")
    assert (found.verdict, found.findings) == ("not a hypernetwork", [])


class Calling:
    """Pickled, it is a call."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return open, ("/nowhere",)


def test_objects_in_numpy_files_are_scanned(tmp_path: Path) -> None:
    for value, verdict in ((Calling(), "suspicious"), ([1, "x"], "not a hypernetwork")):
        file, archive, packed = io.BytesIO(), io.BytesIO(), io.BytesIO()
        array = numpy.array([value, None], dtype=object)
        numpy.save(file, array, allow_pickle=True)
        numpy.savez(archive, array)
        numpy.savez_compressed(packed, array)
        for data in (file.getvalue(), archive.getvalue(), packed.getvalue()):
            assert scanned(data, tmp_path, "array.bin").verdict == verdict
    file = io.BytesIO()
    numpy.save(file, numpy.array([Calling()], dtype=object), allow_pickle=True)
    assert scanned(with_members(("archive/data/99", file.getvalue())), tmp_path).verdict == "suspicious"
    for plain in (numpy.eye(3), numpy.array(["a"])):
        file = io.BytesIO()
        numpy.save(file, plain)
        assert scanned(file.getvalue(), tmp_path).verdict == "not a hypernetwork"


# -- torch


@pytest.mark.parametrize(
    "extra",
    [
        [
            (".data/extern_modules", b"builtins\n"),
            ("collections.py", b"raise SystemExit"),
            (".data/python_version", b"3"),
        ],
        [(".DATA/Extern_Modules", b"builtins\n"), ("collections.py", b"")],
        [("CODE/__torch__.py", b""), ("CONSTANTS.PKL", b"\x80\x02).")],
        [("Constants.pkl", b"\x80\x02).")],
        [("BYTEORDER", b"big")],
        [("ByteOrder", b"little")],
        [("Version", b"3\n")],
    ],
)
def test_members_that_change_torch_reading_are_refused(extra: list[tuple[str, bytes]], tmp_path: Path) -> None:
    given = rezipped(saved(simple_tree()), lambda name, data: None if name.endswith(("byteorder", "version")) else data)
    result = io.BytesIO(given)
    with zipfile.ZipFile(result, "a") as archive:
        for name, content in extra:
            archive.writestr(f"archive/{name}", content)
    with pytest.raises(UnsafeFileError):
        hnloader.load(io.BytesIO(result.getvalue()))
    assert scanned(result.getvalue(), tmp_path).verdict == "suspicious"


def test_torch_package_is_suspicious(tmp_path: Path) -> None:
    from torch.package import PackageExporter

    path = tmp_path / "package.pt"
    with PackageExporter(str(path)) as exporter:
        exporter.save_source_string("code", "raise SystemExit")
        exporter.save_pickle("values", "x.pkl", {"a": 1})
    assert scan(path).verdict == "suspicious"


def v3(metadata: object) -> bytes:
    """A file whose tensors are described as torch describes those of the newest types."""
    storages: list[bytes] = []

    class Stored(tuple[object, ...]):
        __slots__ = ()

    class Tensor:
        def __init__(self, value: torch.Tensor) -> None:
            self.value = value

        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            value = self.value.contiguous()
            storages.append(value.numpy().tobytes())
            storage = ("storage", torch.UntypedStorage, str(len(storages) - 1), "cpu", len(storages[-1]))
            return torch._utils._rebuild_tensor_v3, (
                Stored(storage),
                0,
                tuple(value.shape),
                value.stride(),
                False,
                OrderedDict(),
                value.dtype,
                *([] if metadata is None else [metadata]),
            )

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> object:
            return tuple(value) if isinstance(value, Stored) else None

    file = io.BytesIO()
    tree = {
        key: tuple({name: Tensor(tensor) for name, tensor in side.items()} for side in value)
        if isinstance(key, int)
        else value
        for key, value in simple_tree().items()
    }
    Pickler(file, 2).dump(tree)
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as archive:
        archive.writestr("archive/data.pkl", file.getvalue())
        for number, data in enumerate(storages):
            archive.writestr(f"archive/data/{number}", data)
        archive.writestr("archive/version", b"3\n")
    return result.getvalue()


def test_negated_tensor_is_refused_in_the_newest_form() -> None:
    plain, negated = v3(None), v3({"neg": True})
    width = next(key for key in simple_tree() if isinstance(key, int))
    ours = hnloader.load(io.BytesIO(plain)).side(width, "k").state_dict()
    theirs = torch.load(io.BytesIO(plain), weights_only=True)[width][0]
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    other = torch.load(io.BytesIO(negated), weights_only=True)[width][0]
    assert not torch.equal(next(iter(other.values())), next(iter(theirs.values())))
    with raises(HypernetworkError, "negated"):
        hnloader.load(io.BytesIO(negated))


def test_attributes_that_change_a_dict_are_refused() -> None:
    made = called(named("collections:OrderedDict"))
    usual = made + b"}" + text("_metadata") + b"}sb"
    assert hnloader.load(io.BytesIO(in_zip(rezipped(saved(simple_tree())), usual))).widths
    hidden = made + b"}" + text("items") + named("builtins:set") + b"sb"
    with pytest.raises(UnsafeFileError):
        hnloader.load(io.BytesIO(in_zip(rezipped(saved(simple_tree())), hidden)))


def test_pickle_at_the_start_of_any_format_is_followed(tmp_path: Path) -> None:
    from hnloader.formats.ambiguity import check_one_reading

    with open_source(io.BytesIO(b"\x80\x02" + CALL + b".")) as source, pytest.raises(UnsafeFileError):
        check_one_reading(source)


# -- zip archives


def test_deflated_data_are_followed_to_the_end() -> None:
    for piece in (64, 1_000):
        for seed in range(300):
            chance = random.Random(seed)
            data = chance.randbytes(piece - chance.randrange(60)) + bytes(chance.randrange(1, 2_000))
            packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
            packed = packer.compress(data) + packer.flush()
            with open_source(io.BytesIO(packed)) as source:
                found = b"".join(map(bytes, inflated(source, 0, len(packed), piece)))
            assert found == data


def test_other_archives_may_have_any_compression_ratio(tmp_path: Path) -> None:
    path = tmp_path / "report.docx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("[Content_Types].xml", "<types/>")
        archive.writestr("word/document.xml", "<w:p>the same again</w:p>" * 50_000)
    assert scan(path).verdict == "not a hypernetwork"


def test_types_and_constants_of_a_checkpoint_are_not_suspicious(tmp_path: Path) -> None:
    types = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]
    file = io.BytesIO()
    torch.save({"state_dict": {"model.diffusion_model.x": torch.zeros(2)}, "a": [types, ..., NotImplemented]}, file)
    assert scanned(file.getvalue(), tmp_path).verdict == "not a hypernetwork"


def packed(method: int, local: int | None = None, comment: bytes = b"", behind: bytes = b"") -> bytes:
    """A plain archive with a pickle that calls something, packed by a method, and by another for its local header."""
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w", method) as archive:
        archive.writestr("model.pkl", b"\x80\x02" + CALL + b"." + behind)
        archive.comment = comment
    data = bytearray(result.getvalue())
    if local is not None:
        struct.pack_into("<H", data, 8, local)
    return bytes(data)


@pytest.mark.parametrize(("method", "local"), [(8, 0), (0, 8), (8, 99), (0, 99)])
def test_member_is_unpacked_by_either_header(method: int, local: int, tmp_path: Path) -> None:
    assert scanned(packed(method, local), tmp_path, "plain.zip").verdict == "suspicious"


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("local", [None, 0])
@pytest.mark.parametrize("comment", [b"", b"by hand"])
def test_unknown_compression_is_unreadable(method: int, local: int | None, comment: bytes, tmp_path: Path) -> None:
    assert scanned(packed(method, local, comment), tmp_path, "plain.zip").verdict == "unreadable"


@pytest.mark.parametrize("comment", [b"", b"by hand"])
def test_call_before_damaged_data_is_found(comment: bytes, tmp_path: Path) -> None:
    data = bytearray(packed(8, None, comment, random.Random(0).randbytes(20_000).hex().encode()))
    data[6_000:6_100] = b"\xff" * 100
    found = scanned(bytes(data), tmp_path, "plain.zip")
    assert (found.verdict, found.callables) == ("suspicious", ["os.system"])


def test_torch_package_after_other_data_is_suspicious(tmp_path: Path) -> None:
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as archive:
        archive.writestr("package/.data/extern_modules", "builtins")
        archive.writestr("package/code.py", "raise SystemExit")
        archive.comment = b"by hand"
    assert scanned(result.getvalue(), tmp_path, "plain.zip").verdict == "suspicious"


@pytest.mark.parametrize("member", ["data.pkl", "data/0", "byteorder"])
def test_member_that_torch_takes_for_a_folder_is_refused(member: str, tmp_path: Path) -> None:
    given = rezipped(saved(simple_tree()))
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(given)) as archive, zipfile.ZipFile(result, "w") as changed:
        for info in archive.infolist():
            copied = zipfile.ZipInfo(info.filename)
            copied.external_attr = 0x10 if info.filename == f"archive/{member}" else 0
            changed.writestr(copied, archive.read(info))
    assert scanned(result.getvalue(), tmp_path).verdict == "suspicious"
    with raises(UnsafeFileError, "folder"):
        hnloader.load(io.BytesIO(result.getvalue()))


def test_folders_in_other_archives_are_not_suspicious(tmp_path: Path) -> None:
    path = tmp_path / "plain.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("a") if hasattr(archive, "mkdir") else archive.writestr("a/", "")
        archive.writestr("a/readme.txt", "hello")
    assert scan(path).verdict == "not a hypernetwork"


def test_entry_of_unknown_zip_version_is_refused() -> None:
    data = bytearray(rezipped(saved(simple_tree())))
    struct.pack_into("<H", data, data.index(b"PK\x01\x02") + 6, 64)
    with pytest.raises(UnsafeFileError):
        hnloader.load(io.BytesIO(bytes(data)))


@pytest.mark.parametrize("value", [b"I+1\n", b"I-0\n", b"I 1\n", b"\x96\x01" + bytes(7) + b"a\x98"])
def test_value_that_unpicklers_read_differently_is_refused(value: bytes) -> None:
    data = in_zip(rezipped(saved(simple_tree())), value)
    with pytest.raises(HypernetworkError):
        hnloader.load(io.BytesIO(data))
