"""Load, inspect and apply Stable Diffusion hypernetworks.

import hnloader

hn = hnloader.load("style.pt")  # any format; never runs code from the file
k, v = hn(context, strength=0.8)  # context [..., width]; unknown width: returned unchanged

with hnloader.attach(pipe, hn, strength=0.8) as attachment:
    image = pipe("a red circle").images[0]
    attachment.set_strength(0.4)

hnloader.save(hn, "style.safetensors")  # or .pt, which every webui loads
info = hnloader.inspect("style.pt")  # header only: no tensor data is read
"""

from hnloader.attention import Application, Attachment, attach, attachments
from hnloader.errors import (
    CorruptFileError,
    HypernetworkError,
    NoMatchingSitesError,
    UnknownFormatError,
    UnsafeFileError,
    UnsupportedArchitectureError,
)
from hnloader.formats import load, save
from hnloader.inspection import FileInfo, inspect
from hnloader.network import Architecture, Hypernetwork

__version__ = "0.1.0"

__all__ = [
    "Application",
    "Architecture",
    "Attachment",
    "CorruptFileError",
    "FileInfo",
    "Hypernetwork",
    "HypernetworkError",
    "NoMatchingSitesError",
    "UnknownFormatError",
    "UnsafeFileError",
    "UnsupportedArchitectureError",
    "attach",
    "attachments",
    "inspect",
    "load",
    "save",
]
