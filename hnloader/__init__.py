"""Load, inspect and apply Stable Diffusion hypernetworks.

import hnloader

hn = hnloader.load("style.pt")  # any format; never runs code from the file
k, v = hn(context, strength=0.8)  # context [..., width]; unknown width: returned unchanged

with hnloader.attach(pipe, hn, strength=0.8) as attachment:
    image = pipe("a red circle").images[0]
    attachment.set_strength(0.4)

hnloader.save(hn, "style.safetensors")  # or .pt, which every webui loads
info = hnloader.inspect("style.pt")  # header only: no tensor data is read

hnloader.train({"model": "sd15/", "images": "images/", "output": "style.pt"})  # or a YAML file
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hnloader.attention.attach import Application, Attachment, attach, attachments
    from hnloader.conversion import Converted, convert
    from hnloader.conversion.lora import LoraExport, to_lora
    from hnloader.conversion.merging import Merged, merge
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
    from hnloader.formats import load, save
    from hnloader.inspection import FileInfo, inspect
    from hnloader.network import Architecture, Hypernetwork
    from hnloader.training import train

__version__ = "0.1.0"

__all__ = [
    "Application",
    "Architecture",
    "Attachment",
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
    "Merged",
    "MissingExtraError",
    "ModelError",
    "NoMatchingSitesError",
    "NotMergeableError",
    "OtherModelError",
    "PartialMatchWarning",
    "PromptTagError",
    "SettingsError",
    "UnknownFormatError",
    "UnsafeFileError",
    "UnsupportedArchitectureError",
    "VerificationError",
    "attach",
    "attachments",
    "convert",
    "inspect",
    "load",
    "merge",
    "save",
    "to_lora",
    "train",
]

# Where each name is defined. They are imported at first use: torch takes a second, which `hnloader --help` and
# the errors do not need.
_HOMES = {
    "hnloader.attention": ("Application", "Attachment", "attach", "attachments"),
    "hnloader.conversion": ("Converted", "convert"),
    "hnloader.conversion.lora": ("LoraExport", "to_lora"),
    "hnloader.conversion.merging": ("Merged", "merge"),
    "hnloader.errors": (
        "CancelledError",
        "ConfigError",
        "CorruptFileError",
        "DatasetError",
        "DivergedError",
        "ExistingFileError",
        "HypernetworkError",
        "HypernetworkNotFoundError",
        "MissingExtraError",
        "ModelError",
        "NoMatchingSitesError",
        "NotMergeableError",
        "OtherModelError",
        "PartialMatchWarning",
        "PromptTagError",
        "SettingsError",
        "UnknownFormatError",
        "UnsafeFileError",
        "UnsupportedArchitectureError",
        "VerificationError",
    ),
    "hnloader.formats": ("load", "save"),
    "hnloader.inspection": ("FileInfo", "inspect"),
    "hnloader.network": ("Architecture", "Hypernetwork"),
    "hnloader.training": ("train",),
}

if not TYPE_CHECKING:  # a type checker would take it for a promise that every name exists

    def __getattr__(name: str) -> object:
        for home, names in _HOMES.items():
            if name in names:
                value = globals()[name] = getattr(importlib.import_module(home), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
