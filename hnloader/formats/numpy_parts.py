"""Describe numpy's pickled arrays and scalars without numpy.

An array is pickled as an empty one, `_reconstruct(ndarray, (0,), b"b")`, that BUILD fills with (version, shape, dtype,
Fortran order, bytes); a dtype as `dtype("f4", False, True)` with a BUILD that states the byte order
(numpy/_core/src/multiarray/methods.c, `array_reduce`; descriptor.c, `arraydescr_reduce`).
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass, field

# numpy's code -> torch's name, and the format by which `struct` reads one value.
_TYPES = {
    "f2": ("float16", "e"),
    "f4": ("float32", "f"),
    "f8": ("float64", "d"),
    "i1": ("int8", "b"),
    "i2": ("int16", "h"),
    "i4": ("int32", "i"),
    "i8": ("int64", "q"),
    "u1": ("uint8", "B"),
    "u2": ("uint16", "H"),
    "u4": ("uint32", "I"),
    "u8": ("uint64", "Q"),
    "b1": ("bool", "?"),
}
__all__ = ["NUMPY_TYPE", "NumpyArray", "NumpyType", "is_plain_type", "scalar"]

_MAX_DIMENSIONS = 16
NUMPY_TYPE = ("numpy", "dtype")
# The size, alignment and flags in the state of a dtype, which numpy does not check.
_NUMBERS, _OBJECTS = (-1, -1, 0), (-1, -1, 63)


def is_plain_type(code: str, state: object) -> bool:
    """Return whether the state of a dtype agrees with its code, as numpy writes it.

    With other flags numpy takes bytes of the file for addresses of objects; with another size it reads beyond them.
    Fields and subarrays have further dtypes, and are refused.

    Args:
        code: The dtype's code, such as "f4".
        state: (version, byte order, subarray, names, fields, size, alignment, flags[, metadata]).
    """
    if not isinstance(state, tuple) or len(state) not in (8, 9) or any(part is not None for part in state[2:5]):
        return False
    size, alignment, flags = numbers = state[5:8]
    if code in ("O8", "O4", "O", "|O"):
        return numbers == _OBJECTS
    if (text := re.fullmatch(r"[USaV](\d{1,9})", code)) is not None:
        unit = 4 if code[0] == "U" else 1
        return size == int(text[1]) * unit and alignment in (1, 4) and flags in (0, 8, 16)
    return re.fullmatch(r"[fiubcMm](1|2|4|8|12|16|24|32)", code) is not None and numbers == _NUMBERS


@dataclass(eq=False)
class NumpyType:
    """A dtype: its code, such as "f4", and its byte order, "<" or ">"."""

    code: str
    order: str = "<"
    is_plain: bool = True

    def build(self, state: object) -> None:
        """Set the byte order from the state of BUILD. Fields and subarrays are not read."""
        self.is_plain = (
            is_plain_type(self.code, state) and isinstance(state, tuple) and state[1] in ("<", ">", "|", "=")
        )
        self.order = ">" if isinstance(state, tuple) and state[1:2] == (">",) else "<"

    @property
    def torch_name(self) -> str | None:
        """Name of torch's dtype; None unless its values are plain little-endian numbers."""
        known = _TYPES.get(self.code)
        return known[0] if known is not None and self.is_plain and self.order == "<" else None


@dataclass(eq=False)
class NumpyArray:
    """An array.

    Attributes:
        dtype: Name of torch's dtype; None before BUILD, and for arrays that are not read.
        shape: Size in each dimension.
        stride: Steps, in values.
        data: The numbers: bytes, or a reference to bytes in the file.
    """

    dtype: str | None = None
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = field(default=())
    data: object = None

    def build(self, state: object, left_in_file: type) -> None:
        """Set shape, dtype, order and numbers from the state of BUILD; `left_in_file` is the class of `data` there."""
        if isinstance(state, tuple) and len(state) == 5:
            _, shape, dtype, is_fortran, data = state
            self.fill(shape, dtype, is_fortran, data, left_in_file)

    def fill(self, shape: object, dtype: object, is_fortran: object, data: object, left_in_file: type) -> None:
        """Set all attributes, or for anything but plain numbers none: `dtype` stays None."""
        if not isinstance(shape, tuple) or len(shape) > _MAX_DIMENSIONS:
            return
        if not all(type(size) is int and size >= 0 for size in shape):
            return
        if not isinstance(dtype, NumpyType) or not isinstance(data, (bytes, left_in_file)):
            return
        name = dtype.torch_name
        if name is None or not isinstance(is_fortran, (bool, int)):
            return
        if isinstance(data, bytes) and len(data) != math.prod(shape) * int(dtype.code[1:]):
            return
        self.dtype, self.shape, self.data = name, shape, data
        sizes = shape if is_fortran else shape[::-1]
        steps = [math.prod(sizes[:axis]) for axis in range(len(sizes))]
        self.stride = tuple(steps if is_fortran else steps[::-1])


def scalar(dtype: NumpyType, data: object) -> int | float | bool | None:
    """Return the number in `numpy.core.multiarray.scalar(dtype, data)`; None for other data."""
    known = _TYPES.get(dtype.code)
    if known is None or not dtype.is_plain or not isinstance(data, bytes):
        return None
    form = dtype.order + known[1]
    if struct.calcsize(form) != len(data):
        return None
    (number,) = struct.unpack(form, data)
    assert isinstance(number, (int, float, bool))
    return number
