"""The globals that a sound file may name, by exact pairs of module and attribute, and those that it may call.

A pickle that names only these cannot run anything of its author's choice. Some are parts of a hypernetwork, which
`pickles` reads; others occur in sound checkpoints of other kinds. Patterns are never used, because an attribute of a
package may be another package.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["CALLED", "KNOWN", "Global", "joined", "may_be_called"]

Global = tuple[str, str]  # module, attribute


def joined(name: Global) -> str:
    """Return a global as Python writes it, "module.attribute"."""
    return f"{name[0]}.{name[1]}"


def _pairs(modules: str, attributes: str) -> frozenset[Global]:
    return frozenset((module, attribute) for module in modules.split() for attribute in attributes.split())


_BUILTINS = "builtins __builtin__"
_MULTIARRAY = "numpy.core.multiarray numpy._core.multiarray"
_DTYPES = """float64 double float32 float float16 half bfloat16 complex64 cfloat complex128 cdouble complex32 chalf
    uint8 uint16 uint32 uint64 int8 int16 short int32 int int64 long bool qint8 quint8 qint32 quint4x2 quint2x4
    int1 int2 int3 int4 int5 int6 int7 uint1 uint2 uint3 uint4 uint5 uint6 uint7 bits1x8 bits2x4 bits4x2 bits8 bits16
    float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu float4_e2m1fn_x2"""
_STORAGES = """DoubleStorage FloatStorage HalfStorage BFloat16Storage LongStorage IntStorage ShortStorage CharStorage
    ByteStorage BoolStorage ComplexDoubleStorage ComplexFloatStorage QUInt8Storage QInt8Storage QInt32Storage
    QUInt4x2Storage QUInt2x4Storage UntypedStorage TypedStorage"""
_QSCHEMES = """per_tensor_affine per_tensor_symmetric per_channel_affine per_channel_symmetric
    per_channel_affine_float_qparams"""
_LIGHTNING = "pytorch_lightning lightning.pytorch lightning"

# Globals that may only be named: torch takes them as descriptions, or ignores them.
NAMED: frozenset[Global] = (
    _pairs("torch", f"{_DTYPES} {_QSCHEMES} {_STORAGES}")
    | _pairs("torch.storage", f"{_STORAGES} _UntypedStorage _TypedStorage")
    | _pairs(
        "numpy",
        "ndarray bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 "
        "complex128",
    )
    | _pairs(_BUILTINS, "Ellipsis NotImplemented")
    | _pairs("typing", "Any")
    | _pairs(" ".join(f"{package}.callbacks.model_checkpoint" for package in _LIGHTNING.split()), "ModelCheckpoint")
    | _pairs("pytorch_lightning.callbacks.pt_callbacks", "ModelCheckpoint EarlyStopping")
    | _pairs(" ".join(f"{package}.callbacks.early_stopping" for package in _LIGHTNING.split()), "EarlyStopping")
)

# Globals that may also be called: they make plain data, tensors or containers of any arguments.
CALLED: frozenset[Global] = (
    _pairs(_BUILTINS, "set frozenset bytes bytearray complex slice list dict tuple int float str bool")
    | _pairs("builtins", "range")
    | _pairs("__builtin__", "xrange unicode long")
    | _pairs("collections", "OrderedDict Counter defaultdict deque")
    | _pairs("_codecs", "encode")
    | _pairs("datetime", "date datetime time timedelta timezone")
    | _pairs("decimal", "Decimal")
    | _pairs("fractions", "Fraction")
    | _pairs("uuid", "UUID SafeUUID")
    | _pairs("argparse", "Namespace")
    | _pairs("types", "SimpleNamespace")
    | _pairs("pathlib pathlib._local", "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath")
    | _pairs(_MULTIARRAY, "scalar _reconstruct")
    | _pairs("numpy.core.numeric numpy._core.numeric", "_frombuffer")
    | _pairs("numpy", "dtype")
    | _pairs("torch", "Size device Tensor")
    | _pairs("torch._tensor", "Tensor")
    | _pairs("torch.serialization", "_get_layout")
    | _pairs("torch.nn.parameter", "Parameter Buffer")
    | _pairs("torch.nn.modules.container", "ParameterDict")
    | _pairs(
        "torch._utils",
        """_rebuild_tensor _rebuild_tensor_v2 _rebuild_tensor_v3 _rebuild_parameter _rebuild_parameter_with_state
        _rebuild_qtensor _rebuild_sparse_tensor _rebuild_sparse_csr_tensor _rebuild_nested_tensor
        _rebuild_meta_tensor_no_storage _rebuild_device_tensor_from_numpy _rebuild_device_tensor_from_cpu_tensor
        _rebuild_xla_tensor""",
    )
    | _pairs("omegaconf.dictconfig", "DictConfig")
    | _pairs("omegaconf.listconfig", "ListConfig")
    | _pairs("omegaconf.base", "ContainerMetadata Metadata")
    | _pairs("omegaconf.nodes", "AnyNode IntegerNode FloatNode BooleanNode StringNode BytesNode PathNode")
    | _pairs(
        "pytorch_lightning.utilities.parsing lightning.pytorch.utilities.parsing "
        "lightning_fabric.utilities.data lightning.fabric.utilities.data",
        "AttributeDict",
    )
)
# Calls its first argument with the third one, a tuple; the second one is the class of the result.
CALLS_ITS_ARGUMENT: Global = ("torch._tensor", "_rebuild_from_type_v2")
KNOWN = NAMED | CALLED | {CALLS_ITS_ARGUMENT}


def may_be_called(name: Global, argument_names: Iterable[Global | None] = ()) -> bool:
    """Return whether a call of a global cannot run anything of the file's choice.

    Args:
        name: The global.
        argument_names: The globals among its arguments; None for each other argument.
    """
    if name == CALLS_ITS_ARGUMENT:
        first = next(iter(argument_names), None)
        return first is not None and first in CALLED and first[0] == "torch._utils"
    return name in CALLED
