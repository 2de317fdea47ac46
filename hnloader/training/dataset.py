"""The images of a folder, their problems and their captions."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hnloader.errors import DatasetError, HypernetworkError, UnknownFormatError
from hnloader.files import open_regular, sha256_of
from hnloader.images import PHOTOS, ReadImage, has_alpha, read_image
from hnloader.training.caption_files import MASK_SUFFIX, CaptionFiles
from hnloader.training.config import MIN_SIZE, DataConfig
from hnloader.training.text_files import reason_of
from hnloader.units import counted

_log = logging.getLogger(__name__)

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Images of phones, cameras and programs that are not supported.
_UNSUPPORTED = (
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".svg", ".psd", ".xcf", ".kra", ".clip", ".tga"),
    *(".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
)
# Longer shapes are cropped, because models do not know them.
MAX_ASPECT_RATIO = 2.0
# Less than this share of an image is worth a warning; squares are asked for, so they may crop more.
_MIN_SHARE, _MIN_SHARE_OF_SQUARE = 0.75, 0.5
_SIDES = re.compile(r"\b(?:left|right)\b", re.IGNORECASE)
_MAX_REMARKS = 10


@dataclass(frozen=True)
class TrainingImage:
    """An image to train on.

    Attributes:
        path: The file.
        digest: The sha256 of its bytes.
        size: Width and height in pixels, upright.
        caption: Its caption; None for a template.
        mask: The mask file next to it, if any.
        alpha: True if it has transparent parts.
    """

    path: Path
    digest: str
    size: tuple[int, int]
    caption: str | None
    mask: Path | None
    alpha: bool

    @property
    def names_side(self) -> bool:
        """True if its caption names left or right, which would be false of the mirrored image."""
        return _SIDES.search(self.caption or "") is not None


@dataclass(frozen=True)
class Problem:
    """A problem of a file; `excluded` if it is not trained on."""

    path: Path
    message: str
    excluded: bool


@dataclass
class Dataset:
    """The images and the problems of a folder."""

    folder: Path
    images: list[TrainingImage] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def warn(self, path: Path, message: str) -> None:
        """Add a problem that does not exclude the file."""
        self.problems.append(Problem(path, message, False))

    def exclude(self, path: Path, message: str) -> None:
        """Add a problem that excludes the file."""
        self.problems.append(Problem(path, message, True))

    def remarks(self, config: DataConfig) -> Iterator[str]:
        """Return the first problems and the number of missing captions, in lines."""
        for problem in self.problems[:_MAX_REMARKS]:
            yield f"{problem.path.name}: {problem.message}{' The image is excluded.' if problem.excluded else ''}"
        if len(self.problems) > _MAX_REMARKS:
            more = len(self.problems) - _MAX_REMARKS
            yield f"{counted(more, 'more problem')}. `hnloader dataset check` lists all of them."
        missing = sum(image.caption is None for image in self.images)
        if missing and config.captions == "auto":
            yield (
                f"{missing} of {len(self.images)} images have no caption and use a template. "
                "For better results, add a .txt next to each image."
            )

    def fingerprint(self) -> str:
        """Return a hash of the images and their captions."""
        parts = [(image.digest, image.caption) for image in self.images]
        return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def read_folder(folder: Path, config: DataConfig, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """Check every image in a folder and its subfolders.

    Args:
        folder: The folder.
        config: The settings for images and captions.
        progress: Called with the number of images that are done and the number of all images.

    Raises:
        DatasetError: The folder does not exist, or contains no usable image.
        ConfigError: The source of the captions does not exist.
    """
    dataset = read_images(folder, image_files(folder), config, progress)
    if len(dataset.images) == 1:
        dataset.warn(dataset.images[0].path, "Found a single image. Training will overfit; use 5 to 50 images.")
    if config.masks and not any(image.mask or image.alpha for image in dataset.images):
        dataset.warn(dataset.folder, f"No masks (NAME{MASK_SUFFIX}) and no transparent images.")
    return dataset


def read_images(
    folder: Path, files: Sequence[Path], config: DataConfig, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """Check images in a folder; see `read_folder`.

    Args:
        folder: The folder, which may hold a file with captions.
        files: The images in it.
        config: The settings for images and captions.
        progress: See `read_folder`.

    Raises:
        DatasetError: None of the images is usable.
        ConfigError: The source of the captions does not exist.
    """
    dataset = Dataset(folder)
    captions = CaptionFiles(folder, config)
    known: dict[str, int] = {}  # the index of the image with these bytes
    for index, path in enumerate(files):
        if progress is not None:
            progress(index, len(files))
        found = _read(path, config, captions, dataset)
        if found is None:
            continue
        if found.digest not in known:
            known[found.digest] = len(dataset.images)
            dataset.images.append(found)
            continue
        used, other = dataset.images[known[found.digest]], found
        if used.caption is None and found.caption is not None:  # prefer the copy with a caption
            used, other = found, used
            dataset.images[known[found.digest]] = found
        dataset.exclude(other.path, f"Same image as {used.path.name}. One of them is used.")
    _check_usable(dataset, files)
    return dataset


def open_image(path: Path, *, shortest: int | None = None) -> ReadImage:
    """Read an image; see `hnloader.images.read_image`, also for its errors."""
    try:
        return read_image(path, PHOTOS, shortest=shortest)
    except UnknownFormatError as error:
        raise UnknownFormatError("Unknown image format.") from error


def image_files(folder: Path) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted; raise DatasetError for another path."""
    if not folder.is_dir():
        problem = "this is not a folder" if folder.exists() else "the folder does not exist"
        raise DatasetError(f"{folder}: {problem}. Name a folder of images.")
    return sorted(path for path in folder.rglob("*") if _is_image(path, folder))


def _is_image(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    mask = path.name.lower().endswith(MASK_SUFFIX)
    return path.suffix.lower() in (*SUFFIXES, *_UNSUPPORTED) and not hidden and not mask and path.is_file()


def _read(path: Path, config: DataConfig, captions: CaptionFiles, dataset: Dataset) -> TrainingImage | None:
    """Return the image, None if it is excluded."""
    if path.suffix.lower() in _UNSUPPORTED:
        dataset.exclude(path, _unsupported(path.suffix.removeprefix(".").upper()))
        return None
    try:
        digest = sha256_of(path)
        found = open_image(path, shortest=MIN_SIZE)
    except (OSError, HypernetworkError, MemoryError) as error:
        _log.debug("%s", path, exc_info=True)
        reason = f"Cannot be read: {reason_of(error).removeprefix(f'{path}: ')}"
        dataset.exclude(path, _unsupported("HEIC or AVIF") if _is_heif(path) else reason)
        return None
    width, height = found.size
    if min(found.size) < MIN_SIZE:
        dataset.exclude(path, f"Too small ({width} x {height} pixels). Images need at least {MIN_SIZE} x {MIN_SIZE}.")
        return None
    if found.frames > 1:
        dataset.warn(path, f"Animated ({found.frames} frames). The first frame is used.")
    share = min((MAX_ASPECT_RATIO if config.buckets else 1.0) * min(found.size) / max(found.size), 1.0)
    if share < (_MIN_SHARE if config.buckets else _MIN_SHARE_OF_SQUARE):
        dataset.warn(path, f"Only {share:.0%} of {width} x {height} pixels are used, from the middle. Crop it to 2:1.")
    caption = captions.caption(path, dataset.warn)
    return TrainingImage(path, digest, found.size, caption, captions.sidecar(path, MASK_SUFFIX), has_alpha(found.image))


def _unsupported(kind: str) -> str:
    return f"{kind} is not supported. Convert the image to PNG or JPEG."


def _is_heif(path: Path) -> bool:
    """Return True for the image format of phones, under any name."""
    try:
        with open_regular(path) as file:
            return file.read(8)[4:] == b"ftyp"
    except OSError:
        return False


def _check_usable(dataset: Dataset, files: Sequence[Path]) -> None:
    if not files:
        raise DatasetError(f"{dataset.folder}: found no images. Add some ({', '.join(SUFFIXES)}).")
    if not dataset.images:
        first = next(problem for problem in dataset.problems if problem.excluded)
        raise DatasetError(
            f"{dataset.folder}: all {len(files)} images are excluded. {first.path.name}: {first.message}"
        )
