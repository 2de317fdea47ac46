"""The pictures of a folder: which there are, what is wrong with them, and their captions."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hnloader.errors import HypernetworkError
from hnloader.files import read_regular, sha256_of
from hnloader.training.config import SMALLEST, DataConfig
from hnloader.training.schema import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MASK_SUFFIX = ".mask.png"
_METADATA = ("metadata.jsonl", "metadata.csv", "captions.json")
_MAX_CAPTION = 10_000
_LARGEST_PICTURE = 512 << 20  # bytes
_MOST_REMARKS = 10
LEFT_OUT = "; it is left out"


class DatasetError(HypernetworkError):
    """The folder has nothing to train on, or its captions cannot be read."""


@dataclass(frozen=True)
class Picture:
    """A picture to train on.

    Attributes:
        path: the file.
        digest: sha256 of its bytes.
        size: width and height in pixels, upright.
        caption: its own, None where a template is taken.
        mask: the mask's file, where one lies beside it.
        alpha: it has transparent parts.
    """

    path: Path
    digest: str
    size: tuple[int, int]
    caption: str | None
    mask: Path | None
    alpha: bool


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a file; `fatal`: it is left out."""

    path: Path
    what: str
    fatal: bool


@dataclass
class Dataset:
    """What a folder holds."""

    folder: Path
    pictures: list[Picture] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_folder(folder: Path, config: DataConfig, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """Look at every picture in `folder` and below it.

    Args:
        progress: called with how many were looked at and how many there are.

    Raises:
        DatasetError: no such folder, or no picture in it can be used.
        ConfigError: captions of the kind asked for are not there.
    """
    files = sorted(_files(folder))
    dataset = Dataset(folder)
    captions = _captions_file(folder, config)
    seen: dict[str, int] = {}  # where in the list a picture with these bytes stands
    for index, path in enumerate(files):
        if progress is not None:
            progress(index, len(files))
        found = _picture(path, folder, config, captions, dataset.problems)
        if found is None:
            continue
        if found.digest not in seen:
            seen[found.digest] = len(dataset.pictures)
            dataset.pictures.append(found)
            continue
        used, left_out = dataset.pictures[seen[found.digest]], found
        if used.caption is None and found.caption is not None:  # the work of writing a caption is not lost
            used, left_out = found, used
            dataset.pictures[seen[found.digest]] = found
        same = used.path.relative_to(folder)
        dataset.problems.append(Problem(left_out.path, f"the same picture as {same}; one of them is used", True))
    _check(dataset, files, config)
    return dataset


def caption_of(picture: Picture, config: DataConfig, name: str, choice: int) -> str:
    """The caption of a picture; `choice` is any whole number, which picks one of the templates."""
    text = picture.caption
    if text is None:
        text = config.templates[choice % len(config.templates)] if config.templates else "{name}"
    text = text.replace("{name}", name).replace("{filename}", _words(picture.path.stem))
    return f"{config.prefix} {text}".strip() if config.prefix else text


def remarks(dataset: Dataset, config: DataConfig) -> Iterator[str]:
    """What somebody who trains on the pictures should know of them, in lines."""
    told = [f"{problem.path.name} {problem.what}{LEFT_OUT * problem.fatal}" for problem in dataset.problems]
    yield from told[:_MOST_REMARKS]
    if len(told) > _MOST_REMARKS:
        yield f"and {len(told) - _MOST_REMARKS} more; `hnloader dataset check` lists them"
    bare = sum(picture.caption is None for picture in dataset.pictures)
    if bare and config.captions == "auto":
        none = f"none of the {bare} pictures has a caption of its own"
        some = f"{bare} of the pictures without a caption of their own"
        whose = none if bare == len(dataset.pictures) else some
        yield f"{whose}, so that templates are taken: a .txt beside each works better"


def fingerprint_of(dataset: Dataset) -> str:
    """Which pictures with which captions these are, as a hash."""
    parts = [(picture.digest, picture.caption) for picture in dataset.pictures]
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


# -- finding and opening


def _files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DatasetError(f"{folder} {what}; name the folder with the pictures to train on")
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        mask = path.name.lower().endswith(MASK_SUFFIX)
        if path.suffix.lower() in SUFFIXES and not hidden and not mask and path.is_file():
            yield path


def _picture(
    path: Path, folder: Path, config: DataConfig, captions: dict[str, str], problems: list[Problem]
) -> Picture | None:
    try:
        digest = sha256_of(path)
        with open_picture(path) as image:
            size, frames, alpha = _upright_size(image), getattr(image, "n_frames", 1), has_alpha(image)
            image.load()
    except (OSError, ValueError, SyntaxError, MemoryError) as error:
        problems.append(Problem(path, f"cannot be read: {_reason(error)}", True))
        return None
    if min(size) < SMALLEST:
        problems.append(Problem(path, f"is tiny ({size[0]} x {size[1]}); at least {SMALLEST} pixels are needed", True))
        return None
    if frames > 1:
        problems.append(Problem(path, f"is animated ({frames} frames); the first is used", False))
    mask = path.with_name(path.stem + MASK_SUFFIX)
    return Picture(
        path,
        digest,
        size,
        _caption(path, folder, config, captions, problems),
        mask if mask.is_file() else None,
        alpha,
    )


def open_picture(path: Path) -> Image:
    """Open a picture without reading its pixels yet; raises OSError or ValueError for a broken one."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(io.BytesIO(read_regular(path, _LARGEST_PICTURE)))
    except UnidentifiedImageError as error:
        raise OSError("it is no picture of a known kind") from error
    except Image.DecompressionBombError as error:
        raise OSError("it has far too many pixels") from error


def has_alpha(image: Image) -> bool:
    """Whether the picture has a transparency channel or color."""
    return image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info


def _upright_size(image: Image) -> tuple[int, int]:
    turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


# -- captions


def _captions_file(folder: Path, config: DataConfig) -> dict[str, str]:
    """Captions of a metadata file by the picture's path within the folder."""
    if config.captions not in ("auto", "metadata"):
        return {}
    path = next((folder / name for name in _METADATA if (folder / name).is_file()), None)
    if path is None:
        if config.captions == "metadata":
            raise ConfigError(f"data.captions is 'metadata', but {folder} has none of {', '.join(_METADATA)}")
        return {}
    try:
        return dict(_metadata_entries(path))
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DatasetError(
            f"{path} cannot be read ({_reason(error)}); entries with file_name and text were expected"
        ) from error


def _metadata_entries(path: Path) -> Iterator[tuple[str, str]]:
    text = read_regular(path).decode("utf-8-sig")
    if path.suffix == ".csv":
        yield from ((row["file_name"], row["text"]) for row in csv.DictReader(text.splitlines()))
    elif path.suffix == ".jsonl":
        rows = (json.loads(line) for line in text.splitlines() if line.strip())
        yield from ((str(row["file_name"]), str(row["text"])) for row in rows)
    else:
        yield from ((str(name), str(caption)) for name, caption in json.loads(text).items())


def _caption(
    path: Path, folder: Path, config: DataConfig, captions: dict[str, str], problems: list[Problem]
) -> str | None:
    kind = config.captions
    if kind == "filename":
        return _words(path.stem)
    found: str | None = None
    if kind in ("auto", "sidecar"):
        found = _sidecar(path, problems)
    if found is None and kind in ("auto", "metadata"):
        found = captions.get(path.relative_to(folder).as_posix(), captions.get(path.name))
    if found is None and kind in ("sidecar", "metadata"):
        problems.append(Problem(path, f"has no caption ({kind}); a template is taken", False))
    return found


def _sidecar(path: Path, problems: list[Problem]) -> str | None:
    """The text beside the picture: NAME.txt or NAME.caption."""
    for suffix in (".txt", ".caption"):
        beside = path.with_suffix(suffix)
        if not beside.is_file():
            continue
        try:
            text = " ".join(read_regular(beside).decode("utf-8-sig").split())
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(beside, f"cannot be read: {_reason(error)}", False))
            continue
        if text:
            return text[:_MAX_CAPTION]
        problems.append(Problem(beside, "is empty; a template is taken", False))
    return None


def _words(stem: str) -> str:
    """A file's name as words: without numbers before it and separators in it."""
    return " ".join(re.sub(r"[_\-+.]+", " ", re.sub(r"^[\d\s_\-]+(?=\D)", "", stem)).split()) or stem


def _check(dataset: Dataset, files: list[Path], config: DataConfig) -> None:
    if not files:
        raise DatasetError(f"{dataset.folder} has no pictures ({', '.join(SUFFIXES)}); put some there")
    if not dataset.pictures:
        first = next(problem for problem in dataset.problems if problem.fatal)
        raise DatasetError(
            f"none of the {len(files)} pictures in {dataset.folder} can be used; {first.path.name} {first.what}"
        )
    if len(dataset.pictures) == 1:
        dataset.problems.append(
            Problem(
                dataset.pictures[0].path, "is the only picture: it will be learnt by heart; 5 to 50 work well", False
            )
        )
    if config.masks and not any(picture.mask or picture.alpha for picture in dataset.pictures):
        dataset.problems.append(
            Problem(dataset.folder, f"has no masks (NAME{MASK_SUFFIX}) and no transparent pictures", False)
        )
