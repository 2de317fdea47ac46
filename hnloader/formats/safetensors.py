"""The safetensors format: tensors named `<scope>.<k|v>.<name>`, everything else in one JSON text of the header.

docs/format.md describes the layout. A safetensors file cannot run code, and its header is read without its data.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import safetensors
import torch
from torch import Tensor

from hnloader.errors import CorruptFileError, OtherModelError, UnsupportedArchitectureError
from hnloader.families import families_of, family_named
from hnloader.files import open_new
from hnloader.formats.ambiguity import check_one_reading
from hnloader.formats.contents import Contents, SideTensors, all_named_tensors
from hnloader.formats.identify import kind_of_names
from hnloader.formats.outgoing import Lazy, Outgoing, held
from hnloader.formats.pickles import MAX_INT_BYTES, has_chosen_hash, item_size
from hnloader.formats.registry import FileFormat
from hnloader.formats.source import Source, joined
from hnloader.formats.trees import canonical
from hnloader.network import SIDES, SideName
from hnloader.scopes import MOST_SCOPES, Scope, as_scope
from hnloader.texts import as_text, shown, well_formed

__all__ = [
    "FORMAT",
    "check_header",
    "decode_value",
    "encode_value",
    "read_lazily",
    "write_lazily",
    "write_tensors",
]

# Layout 2 has scopes in the place of widths. A file whose scopes are whole widths has layout 1.
LAYOUT_VERSION = 2
MAX_HEADER_SIZE = 8 << 20
MAX_PARTS = 500_000  # of the JSON that describes a hypernetwork: brackets and commas
MAX_TENSORS = 20_000  # a full checkpoint, which is read only to say what it is, has some 3,000
MAX_JSON_DEPTH = 64
# The key of the header's metadata that makes a file a hypernetwork.
METADATA_KEY = "hypernetwork"
# ModelSpec: the sha256 of all bytes after the header, which replaces a placeholder after the data is written.
HASH_KEY = "modelspec.hash_sha256"
_NO_HASH = "?" * 64
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_DTYPE_CODES = {name: code for code, name in _DTYPES.items()}
_TENSOR_NAME = re.compile(r"([1-9][^.]*)\.([kv])\.(.+)", re.DOTALL)
_EXTRA_NAME = re.compile(r"metadata\.(0|[1-9][0-9]{0,6})")
# Constructors by the names in `encode_value`.
_SEQUENCES: dict[str, Callable[[Iterable[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "Size": torch.Size,
    "set": set,
    "frozenset": frozenset,
}
_FLOATS = ("nan", "inf", "-inf")
_USUAL_NAN = struct.pack(">d", math.nan)
_HALVES = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_HALF = re.compile("[\ud800-\udfff]")
_MAX_DIGITS = 3 * MAX_INT_BYTES


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the header describes it; `offset` is that of its first byte in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


def _detect(source: Source) -> bool:
    """Return whether a file begins with a length and a JSON object, as every safetensors file does."""
    head = source.head
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= source.size


def _read(source: Source) -> Contents:
    tensors, metadata = _read_header(source)
    described = metadata.get(METADATA_KEY)
    if described is None:
        kind = kind_of_names(tensors) or "a safetensors file of an unknown kind, not a hypernetwork"
        raise OtherModelError(f"{source.label} is {kind}.")
    about = _described(described, source.label)
    extras = {name: info for name, info in tensors.items() if _EXTRA_NAME.fullmatch(name)}
    try:
        sides, old_names = _sides(tensors, extras.keys(), _scopes(about))
        values = _decode_mapping(about.get("metadata", {}), extras)
        ordered = _is_ordered(about.get("state_dicts", "dict"))
        if unused := extras.keys() - _named_in(about.get("metadata", {})):
            raise ValueError(f"No key uses the tensor {shown(min(unused))}.")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptFileError(
            f"{source.label}: the hypernetwork metadata is damaged ({_problem(error)}). Download the file again."
        ) from error
    except UnsupportedArchitectureError as error:
        raise UnsupportedArchitectureError(f"{source.label}: {error}") from error

    def read_tensor(info: StoredTensor) -> Tensor:
        return _read_tensor(source, info)

    variant = as_text(about.get("variant", ""), 200)
    notes = {key: value for key, value in metadata.items() if key != METADATA_KEY}
    return Contents(
        label=source.label,
        format="safetensors",
        container="safetensors",
        program="hnloader",
        variant=variant,
        metadata=values,
        sides=sides,
        old_names=old_names,
        read=read_tensor,
        stream=lambda info: source.pieces(info.offset, info.size),
        notes=notes,
        ordered=ordered,
        stated_origin=variant,
    )


def _described(text: str, label: str) -> dict[str, Any]:
    if sum(text.count(sign) for sign in "[{,") > MAX_PARTS:
        raise CorruptFileError(f"{label}: the hypernetwork metadata holds more than {MAX_PARTS:,} values. Remove some.")
    try:
        about = _ABOUT.decode(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(
            f"{label}: the hypernetwork metadata is damaged JSON ({_problem(error)}). Download the file again."
        ) from error
    version = about.get("layout") if isinstance(about, dict) else None
    if type(version) is not int or version < 1:
        raise CorruptFileError(f"{label}: the hypernetwork metadata lacks the layout version. Save the file again.")
    if version > LAYOUT_VERSION:
        raise UnsupportedArchitectureError(
            f"{label} has layout {version}, and this hnloader reads up to {LAYOUT_VERSION}. Update hnloader."
        )
    return about  # type: ignore[no-any-return]


def _read_tensor(source: Source, info: StoredTensor) -> Tensor:
    dtype = getattr(torch, info.dtype)
    data = joined(source.pieces(info.offset, info.size), info.size)
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.reshape(info.shape)


def read_lazily(source: Source) -> tuple[dict[str, Lazy], dict[str, str]]:
    """Return the tensors of any safetensors file, which are read on demand, and its metadata.

    Raises:
        CorruptFileError: The header is damaged or does not fit the file.
    """
    tensors, metadata = _read_header(source)

    def lazy(info: StoredTensor) -> Lazy:
        return Lazy(
            info.shape, info.dtype, lambda: _read_tensor(source, info), lambda: source.pieces(info.offset, info.size)
        )

    return {name: lazy(info) for name, info in tensors.items()}, metadata


# -- the header


def check_header(source: Source) -> None:
    """Raise CorruptFileError if a safetensors header is damaged, ambiguous, or does not fit the file."""
    _read_header(source)


def _read_header(source: Source) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    check_one_reading(source)
    size = int.from_bytes(source.head[:8], "little")
    if not 2 <= size <= MAX_HEADER_SIZE:
        raise CorruptFileError(
            f"{source.label}: the header has {size:,} bytes, more than {MAX_HEADER_SIZE:,}. Download the file again."
        )
    try:
        # From bytes, json would also accept UTF-16 and lone surrogates, which other programs refuse.
        header = _HEADER.decode(source.read(8, size).decode("utf-8"))
        if len(header) > MAX_TENSORS:
            raise ValueError(f"It names {len(header):,} tensors, more than {MAX_TENSORS:,}.")
        metadata = header.pop("__metadata__", {})
        tensors = {name: _stored(name, entry, 8 + size, source.size) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(
            f"{source.label}: the safetensors header is damaged ({_problem(error)}). Download the file again."
        ) from error
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptFileError(
            f"{source.label}: the safetensors metadata holds other values than text. Save the file again."
        )
    _check_layout(tensors, 8 + size, source)
    return tensors, metadata


def _problem(error: Exception) -> str:
    """Return what an error says, without its full stop."""
    return as_text(error, 300).removesuffix(".")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"The name {shown(twice)} occurs twice.")
    return result


def _integer(text: str) -> int:
    if len(text) > _MAX_DIGITS:  # Python before 3.10.7 takes quadratic time
        raise ValueError(f"An integer has {len(text):,} digits.")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is outside the range of numbers.")
    return value


def _header_number(text: str) -> int | float:
    """Return a number within the range of float64, as the safetensors library requires."""
    value = _finite(text)
    return int(text) if text.lstrip("-").isdecimal() else value


_ABOUT = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_finite, parse_constant=_finite)
_HEADER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_header_number, parse_float=_header_number, parse_constant=_header_number
)


def _stored(name: str, entry: dict[str, Any], start: int, end: int) -> StoredTensor:
    begin, stop = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not all(type(n) is int and n >= 0 for n in (*shape, begin, stop)) or len(shape) > 16:
        raise ValueError(f"{shown(name)} has an invalid shape or offsets.")
    # An unknown dtype keeps its own name, so that the kind of model can still be identified.
    dtype = _DTYPES.get(entry["dtype"], as_text(entry["dtype"], 20))
    known = entry["dtype"] in _DTYPES
    size = math.prod(shape) * item_size(dtype) if known else stop - begin
    if stop - begin != size or start + stop > end:
        raise ValueError(f"{shown(name)} has {stop - begin:,} bytes up to {start + stop:,}, but needs {size:,}.")
    return StoredTensor(name, dtype, shape, start + begin, size)


def _check_layout(tensors: dict[str, StoredTensor], start: int, source: Source) -> None:
    """Check that the data of the tensors fills the rest of the file without gaps or overlaps."""
    at = start
    for info in sorted(tensors.values(), key=lambda info: (info.offset, info.size)):
        if info.offset != at:
            raise CorruptFileError(
                f"{source.label}: the data of {shown(info.name)} overlap others or leave a gap. Download the file "
                "again."
            )
        at += info.size
    if at != source.size:
        raise CorruptFileError(
            f"{source.label} has {source.size:,} bytes, but its header describes {at:,}. Download it again."
        )


def _scopes(about: dict[str, Any]) -> list[Scope]:
    """Return the scopes that a description lists. Raises ValueError."""
    key = "widths" if about["layout"] == 1 else "scopes"
    listed, kind = about.get(key), int if key == "widths" else str
    if not isinstance(listed, list) or not all(type(each) is kind for each in listed) or not listed:
        raise ValueError(f"The key {key} is not a list of {'whole numbers' if kind is int else 'texts'}.")
    if len(listed) > MOST_SCOPES:  # before their texts are parsed
        raise ValueError(f"The key {key} names {len(listed):,} scopes, more than {MOST_SCOPES:,}.")
    if {"widths", "scopes"} <= about.keys():
        raise ValueError("The description has both keys, widths and scopes.")
    scopes = [as_scope(each) for each in listed]
    if len(set(scopes)) < len(scopes):
        twice = next(scope for scope, count in Counter(scopes).items() if count > 1)
        raise ValueError(f"The key {key} names {twice} twice.")
    if key == "scopes" and all(scope.whole for scope in scopes):
        raise ValueError("The scopes are whole widths, which layout 1 describes.")
    return scopes


def _sides(
    tensors: dict[str, StoredTensor], extras: Any, scopes: Sequence[Scope]
) -> tuple[dict[tuple[Scope, SideName], SideTensors], bool]:
    by_text = {str(scope): scope for scope in scopes}
    grouped: dict[tuple[Scope, SideName], dict[object, object]] = {
        (scope, side): {} for scope in scopes for side in SIDES
    }
    for name, info in tensors.items():
        match = _TENSOR_NAME.fullmatch(name)
        if match is not None and match[1] in by_text:
            grouped[by_text[match[1]], "k" if match[2] == "k" else "v"][match[3]] = info
        elif match is not None:
            raise ValueError(f"The tensor {shown(name)} belongs to none of the widths or scopes of the file.")
        elif name not in extras:
            raise ValueError(f"A tensor has the name {shown(name)}.")
    # safetensors does not keep the order; the order of computation reads best.
    return all_named_tensors(
        {
            key: dict(sorted(given.items(), key=lambda item: _natural(as_text(item[0], 1000))))
            for key, given in grouped.items()
        }
    )


def _is_ordered(stated: object) -> bool:
    if stated not in ("dict", "OrderedDict"):
        raise ValueError(f"The key state_dicts is {shown(stated, 40)}.")
    return stated == "OrderedDict"


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts linear.2 before linear.10, weight before bias, and upsample_layer before linear."""
    ordered = name.replace("weight", "0weight").replace("bias", "1bias").replace("upsample_layer", "0upsample_layer")
    parts = ordered.split(".")
    return [(int(part), "") if part.isascii() and part.isdigit() and len(part) < 6 else (0, part) for part in parts]


# -- metadata with Python types: JSON keeps text, numbers, True, False, None and lists; other values become an object
# with one key that names the type


def encode_value(value: object, tensors: dict[str, Lazy] | None = None, depth: int = 0) -> object:
    """Return a value of metadata in a form for JSON; tensors go into `tensors` by their names in the file.

    Raises UnsupportedArchitectureError for values of kinds that files do not keep, and for too deep nesting.
    """
    if depth > MAX_JSON_DEPTH:
        raise UnsupportedArchitectureError(
            f"The metadata nests more than {MAX_JSON_DEPTH} levels deep. Make it flatter."
        )
    kind = type(value)
    if value is None or kind is bool:
        return value
    if isinstance(value, str) and kind is str:
        # JSON joins two adjacent halves to one character.
        return value if _HALVES.search(value) is None else {"text": _base64(value.encode("utf-8", "surrogatepass"))}
    if isinstance(value, int) and kind is int:
        if not -(10 ** (_MAX_DIGITS - 1)) < value < 10**_MAX_DIGITS:
            raise UnsupportedArchitectureError(
                f"The metadata holds an integer of {value.bit_length():,} bits. Use a smaller number."
            )
        return value
    if isinstance(value, float) and kind is float:
        if math.isnan(value) and (bits := struct.pack(">d", value)) != _USUAL_NAN:
            return {"nan": bits.hex()}
        return value if math.isfinite(value) else {"float": shown(value)}
    if isinstance(value, Lazy) and tensors is not None:
        name = f"metadata.{len(tensors)}"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, (bytes, bytearray)) and kind in (bytes, bytearray):
        return {kind.__name__: _base64(value)}
    if isinstance(value, dict) and kind in (dict, OrderedDict):
        pairs = [
            [encode_value(key, tensors, depth + 1), encode_value(part, tensors, depth + 1)]
            for key, part in value.items()
        ]
        return {kind.__name__: pairs}
    if isinstance(value, (list, tuple, set, frozenset)) and kind in _SEQUENCES.values():
        items = [encode_value(part, tensors, depth + 1) for part in value]
        return items if kind is list else {kind.__name__: items}
    raise UnsupportedArchitectureError(f"The metadata holds a {kind.__name__}. Use numbers, text, lists or dicts.")


def decode_value(value: Any, tensors: Mapping[str, object] = MappingProxyType({})) -> Any:
    """Return the argument of `encode_value`. Raises KeyError, TypeError or ValueError for other input."""
    if isinstance(value, list):
        return [decode_value(part, tensors) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        if content not in _FLOATS:
            raise ValueError(f"{shown(content, 40)} is not one of {', '.join(_FLOATS)}.")
        return float(content)  # a new NaN each time: a dict may have several as keys
    if kind == "nan":
        number: float = struct.unpack(">d", bytes.fromhex(content))[0]
        if not math.isnan(number):
            raise ValueError(f"{shown(content, 40)} is a number with another form.")
        return number
    if kind in ("bytes", "bytearray", "text"):
        data = base64.b64decode(content, validate=True)
        if kind == "text":
            return data.decode("utf-8", "surrogatepass")
        return data if kind == "bytes" else bytearray(data)
    if kind in ("dict", "OrderedDict"):
        pairs = [(_key(decode_value(key, tensors)), decode_value(part, tensors)) for key, part in content]
        made = OrderedDict(pairs) if kind == "OrderedDict" else dict(pairs)
        _check_distinct(made, pairs)
        return made
    items = [decode_value(part, tensors) for part in content]
    if kind in ("set", "frozenset"):
        distinct = _SEQUENCES[kind](map(_key, items))
        _check_distinct(distinct, items)
        return distinct
    return _SEQUENCES[kind](items)


def _check_distinct(made: Sized, given: Sized) -> None:
    if len(made) != len(given):
        raise ValueError("A key or item occurs twice.")


def _base64(data: bytes | bytearray) -> str:
    return base64.b64encode(data).decode("ascii")


def _key(key: Any) -> Any:
    if has_chosen_hash(key):
        raise ValueError(f"A {type(key).__name__} is used as a key.")
    return key


def _decode_mapping(given: Any, tensors: Mapping[str, object]) -> dict[str, object]:
    if not isinstance(given, dict):
        raise TypeError("The key metadata is not a JSON object.")
    return {key: decode_value(value, tensors) for key, value in given.items()}


def _named_in(given: Any) -> set[str]:
    """Return the names of the tensors in encoded metadata that were decoded without an error."""
    names: set[str] = set()
    pending = [*given.values()]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            for kind, content in value.items():
                if kind == "tensor":
                    names.add(content)
                else:
                    pending.append(content)
    return names


# -- writing


def _write(outgoing: Outgoing, path: Path) -> None:
    """Write all tensors bit for bit, and the metadata with their types."""
    extras: dict[str, Lazy] = {}
    metadata = {key: encode_value(value, extras) for key, value in outgoing.metadata.items()}
    about: dict[str, object] = {
        **_layout(outgoing.scopes),
        "variant": outgoing.variant,
        "metadata": metadata,
    }
    if outgoing.ordered:
        about["state_dicts"] = "OrderedDict"
    described = json.dumps(about, ensure_ascii=True)
    _read_back(described, extras, outgoing.metadata)
    tensors = {
        f"{scope}.{side}.{name}": tensor
        for scope in outgoing.scopes
        for side in SIDES
        for name, tensor in outgoing.sides[scope, side].items()
    }
    header = {"format": "pt", METADATA_KEY: described, **_model_spec(outgoing)}
    write_lazily(path, {**tensors, **extras}, {**header, **outgoing.notes}, outgoing.hashes, hashed=outgoing.data_hash)


def _layout(scopes: Sequence[Scope]) -> dict[str, object]:
    """Return the layout, and the widths or scopes in their order."""
    if all(scope.whole for scope in scopes):
        return {"layout": 1, "widths": [scope.width for scope in scopes]}
    return {"layout": 2, "scopes": [str(scope) for scope in scopes]}


def _read_back(text: str, extras: Mapping[str, Lazy], metadata: Mapping[str, object]) -> None:
    """Check that the description is read back unchanged. Raises UnsupportedArchitectureError."""
    try:
        found = _decode_mapping(_described(text, "The file")["metadata"], extras)
    except (CorruptFileError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UnsupportedArchitectureError(
            f"The metadata could not be read back ({_problem(error)}). Change or remove that value."
        ) from error
    for (key, value), other in zip(metadata.items(), found.items(), strict=True):
        if canonical((key, value), id) != canonical(other, id):
            raise UnsupportedArchitectureError(
                f"The metadata key {shown(key)} would be read back as another key or value, because safetensors "
                "headers are "
                "JSON. Change or remove it, or save as .pt."
            )


def _model_spec(outgoing: Outgoing) -> dict[str, str]:
    """Return the keys of Stability AI's ModelSpec 1.0.1, by which programs identify models."""
    made_for = families_of(outgoing.scopes)
    family = family_named(made_for[0]) if len(made_for) == 1 else None
    base = family.modelspec if family else "stable-diffusion"
    if not made_for and not all(scope.whole for scope in outgoing.scopes):
        base = "transformer"
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{base}/hypernetwork",
        "modelspec.implementation": "https://github.com/AUTOMATIC1111/stable-diffusion-webui",
        "modelspec.title": well_formed(outgoing.name),
    }


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file one tensor at a time, and open it with the safetensors library.

    The library's own writer needs NumPy and holds all data twice.
    """
    write_lazily(path, {name: held(tensor) for name, tensor in tensors.items()}, metadata)


def write_lazily(
    path: Path,
    tensors: Mapping[str, Lazy],
    metadata: Mapping[str, str],
    hashes: Mapping[str, Callable[[], str]] | None = None,
    *,
    hashed: bool = False,
) -> None:
    """Write a safetensors file one tensor at a time, and open it with the safetensors library.

    `hashes` are sha256 in hex by key; they and, with `hashed`, ModelSpec's hash of the data replace placeholders in the
    header after the data is written.
    """
    for stated in (*tensors, *metadata, *metadata.values()):
        # The library refuses these. A hypernetwork's metadata is escaped JSON within the header.
        if _HALF.search(stated):
            raise UnsupportedArchitectureError(
                f"{shown(stated)} holds half of a character, which safetensors files cannot keep. Change that text."
            )
    late = dict(hashes or {})
    places = dict.fromkeys(late, _NO_HASH) | ({HASH_KEY: f"0x{_NO_HASH}"} if hashed else {})
    # Widest values first, as the library does, so that every tensor is aligned.
    names = sorted(tensors, key=lambda name: (-item_size(tensors[name].dtype), name))
    header: dict[str, object] = {"__metadata__": {**metadata, **places}}
    at = 0
    for name in names:
        size = math.prod(tensors[name].shape) * item_size(tensors[name].dtype)
        dtype = _DTYPE_CODES[tensors[name].dtype]
        header[name] = {"dtype": dtype, "shape": list(tensors[name].shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_SIZE or len(tensors) > MAX_TENSORS:
        raise UnsupportedArchitectureError(
            f"The header has {len(text):,} bytes and {len(tensors):,} tensors, more than {MAX_HEADER_SIZE:,} bytes or "
            f"{MAX_TENSORS:,} tensors. Remove some metadata."
        )
    with open_new(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        digest = _write_data(file, [tensors[name] for name in names], hashed=hashed)
        late |= {HASH_KEY: lambda: digest} if hashed else {}
        for key, known in late.items():
            place = text.index(b"?", text.index(f'"{key}":"'.encode("ascii")))
            file.seek(8 + place)
            file.write(known().encode("ascii"))
    if well_formed(str(path)) != str(path):  # the library cannot open such a path
        return
    with safetensors.safe_open(path, framework="pt") as opened:
        assert set(opened.keys()) == set(names)


def _write_data(file: BinaryIO, tensors: Sequence[Lazy], *, hashed: bool) -> str:
    """Write the tensors in order and return their sha256 in hex. A second thread for the hash was not faster."""
    digest = hashlib.sha256()
    for piece in (piece for tensor in tensors for piece in tensor.pieces()):
        if hashed:
            digest.update(piece)
        file.write(piece)
    return digest.hexdigest()


FORMAT = FileFormat(
    name="safetensors",
    label="safetensors",
    suffixes=(".safetensors",),
    detect=_detect,
    read=_read,
    write=_write,
    rank=10,
    keeps_notes=True,
)
