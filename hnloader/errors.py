"""Every error that hnloader raises on purpose.

Each message says what was found, where, and what to do about it. Catch `HypernetworkError` to catch them all.
"""

from __future__ import annotations


class HypernetworkError(Exception):
    """Root of all errors of this package."""


class UnsafeFileError(HypernetworkError):
    """The file asks for something that a hypernetwork never needs, such as calling a function. Nothing was run."""


class UnknownFormatError(HypernetworkError):
    """The file is something else: another kind of model, a web page, a picture, plain text."""


class OtherModelError(UnknownFormatError):
    """The file is a sound model of another kind, such as a LoRA, a full checkpoint or an embedding."""


class CorruptFileError(HypernetworkError):
    """The file is of a known kind but damaged: empty, truncated, with sizes that do not add up."""


class UnsupportedArchitectureError(HypernetworkError):
    """The file is a hypernetwork whose metadata and tensors contradict each other or cannot be computed."""


class NoMatchingSitesError(HypernetworkError):
    """The model has no attention layer of a width that the hypernetwork holds."""
