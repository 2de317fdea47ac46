"""Every error and warning that hnloader raises on purpose.

Each message says what was found, where, and what to do about it. Each class has a `code` that stays the same when the
wording of a message changes: test and branch on the class or the code, never on the sentence.

>>> import hnloader
>>> try:
...     hnloader.load("missing.pt")
... except hnloader.HypernetworkError as error:
...     error.code
'hypernetwork'
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
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
]


class HypernetworkError(Exception):
    """Root of all errors of this package.

    Attributes:
        code: Stable identifier of the class, in lower case with hyphens.
    """

    code: ClassVar[str] = "hypernetwork"


# Reading files.


class UnsafeFileError(HypernetworkError):
    """The file asks for something that a hypernetwork never needs, such as calling a function. Nothing was run."""

    code = "unsafe-file"


class UnknownFormatError(HypernetworkError):
    """The file is something else: another kind of model, a web page, an image, plain text."""

    code = "unknown-format"


class OtherModelError(UnknownFormatError):
    """The file is a sound model of another kind, such as a LoRA, a full checkpoint or an embedding."""

    code = "other-model"


class CorruptFileError(HypernetworkError):
    """The file is of a known kind but damaged: empty, truncated, with sizes that do not add up."""

    code = "corrupt-file"


class UnsupportedArchitectureError(HypernetworkError):
    """The file is a hypernetwork whose metadata and tensors contradict each other or cannot be computed."""

    code = "unsupported-architecture"


class HypernetworkNotFoundError(HypernetworkError):
    """The searched folders hold no file of this name."""

    code = "hypernetwork-not-found"


# Writing files.


class ExistingFileError(HypernetworkError):
    """The output file exists, and replacing it was not asked for."""

    code = "existing-file"


class VerificationError(HypernetworkError):
    """A written file differs from its source; the message names the difference."""

    code = "verification"


class NotMergeableError(HypernetworkError):
    """One file cannot hold the result of a merge; the message says why and names an alternative."""

    code = "not-mergeable"


# Applying and generating.


class NoMatchingSitesError(HypernetworkError):
    """The model has no attention layer of a width that the hypernetwork holds."""

    code = "no-matching-sites"


class PartialMatchWarning(UserWarning):
    """A hypernetwork holds widths that the model's attention layers do not have."""

    code: ClassVar[str] = "partial-match"


class PromptTagError(HypernetworkError):
    """A prompt tag names an unknown hypernetwork, or holds a strength or an option that cannot be read."""

    code = "prompt-tag"


class SettingsError(HypernetworkError):
    """A setting of an image is outside of what the model supports."""

    code = "settings"


class ModelError(HypernetworkError):
    """The model that should generate the images is missing, damaged, or takes no hypernetworks."""

    code = "model"


def install_advice(extra: str) -> str:
    """Tell how to install an extra. The name hnloader on PyPI is not ours, so pip needs the folder of the clone."""
    return f"In the folder of hnloader, run: python -m pip install '.[{extra}]'"


class MissingExtraError(HypernetworkError):
    """An optional package is missing; the message names the command that installs it."""

    code = "missing-extra"


class CancelledError(HypernetworkError):
    """The user stopped a job; everything finished before is kept."""

    code = "cancelled"

    def __init__(self) -> None:
        super().__init__("Cancelled.")


# Training.


class ConfigError(HypernetworkError):
    """A configuration holds an unknown key or an impossible value; the message names the key and the value."""

    code = "config"


class DatasetError(HypernetworkError):
    """The dataset folder has no images to train on, or its captions cannot be read."""

    code = "dataset"


class DivergedError(HypernetworkError):
    """The training loss became NaN or infinite."""

    code = "diverged"
