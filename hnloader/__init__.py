"""Load, inspect, apply, convert and train Stable Diffusion hypernetworks.

import hnloader

hn = hnloader.load("style.pt")  # any format; never runs code from the file
k, v = hn(context, strength=0.8)  # context [..., width]; unknown width: returned unchanged

with hnloader.attach(pipe, hn, strength=0.8) as attachment:
    image = pipe("a red circle").images[0]
    attachment.set_strength(0.4)

hnloader.save(hn, "style.safetensors")  # or .pt, which every webui loads
info = hnloader.inspect("style.pt")  # reads the header only

hnloader.train({"model": "sd15/", "images": "images/", "output": "style.pt"})  # or a YAML file
hn = hnloader.predict("images/")  # without training, for the bundled pipeline or with your own predictor
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from hnloader._version import __version__ as __version__
from hnloader.errors import (
    CancelledError,
    ConfigError,
    CorruptFileError,
    DatasetError,
    DivergedError,
    ExistingFileError,
    HypernetworkError,
    HypernetworkNotFoundError,
    MissingExtraError,
    ModelError,
    NoMatchingSitesError,
    NotMergeableError,
    OtherModelError,
    PartialMatchWarning,
    PromptTagError,
    SettingsError,
    UnknownFormatError,
    UnsafeFileError,
    UnsupportedArchitectureError,
    VerificationError,
)

if TYPE_CHECKING:
    from hnloader.attention.attach import Application, Attachment, attach, attachments
    from hnloader.conversion import Converted, convert
    from hnloader.conversion.baking import Baked, bake
    from hnloader.conversion.lora import LoraExport, LoraOptions, export_lora
    from hnloader.conversion.merging import Merged, merge
    from hnloader.inspection import FileInfo, inspect
    from hnloader.loading import load, save
    from hnloader.network import Architecture, Hypernetwork
    from hnloader.prediction import predict
    from hnloader.scopes import Scope
    from hnloader.training import train

__all__ = [
    "Application",
    "Architecture",
    "Attachment",
    "Baked",
    "CancelledError",
    "ConfigError",
    "Converted",
    "CorruptFileError",
    "DatasetError",
    "DivergedError",
    "ExistingFileError",
    "FileInfo",
    "Hypernetwork",
    "HypernetworkError",
    "HypernetworkNotFoundError",
    "LoraExport",
    "LoraOptions",
    "Merged",
    "MissingExtraError",
    "ModelError",
    "NoMatchingSitesError",
    "NotMergeableError",
    "OtherModelError",
    "PartialMatchWarning",
    "PromptTagError",
    "Scope",
    "SettingsError",
    "UnknownFormatError",
    "UnsafeFileError",
    "UnsupportedArchitectureError",
    "VerificationError",
    "attach",
    "attachments",
    "bake",
    "convert",
    "export_lora",
    "inspect",
    "load",
    "merge",
    "predict",
    "save",
    "train",
]

# The module of each name that is imported at its first use, since importing torch takes a second.
_LAZY = {
    "hnloader.attention": ("Application", "Attachment", "attach", "attachments"),
    "hnloader.conversion": ("Converted", "convert"),
    "hnloader.conversion.baking": ("Baked", "bake"),
    "hnloader.conversion.lora": ("LoraExport", "LoraOptions", "export_lora"),
    "hnloader.conversion.merging": ("Merged", "merge"),
    "hnloader.inspection": ("FileInfo", "inspect"),
    "hnloader.loading": ("load", "save"),
    "hnloader.network": ("Architecture", "Hypernetwork"),
    "hnloader.prediction": ("predict",),
    "hnloader.scopes": ("Scope",),
    "hnloader.training": ("train",),
}

if not TYPE_CHECKING:  # to a type checker, __getattr__ means that every name exists

    def __getattr__(name: str) -> object:
        for module, names in _LAZY.items():
            if name in names:
                value = globals()[name] = getattr(importlib.import_module(module), name)
                return value
        raise AttributeError(f"{__name__}: found no attribute {name!r}. Use one of those in __all__.")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
