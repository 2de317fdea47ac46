"""The images of a folder: which there are, what is wrong with them, and their captions."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hnloader.errors import ConfigError, DatasetError, HypernetworkError, UnknownFormatError
from hnloader.files import open_regular, read_regular, sha256_of
from hnloader.images import PHOTOS, ReadImage, has_alpha, read_image
from hnloader.training.config import SMALLEST, Config, DataConfig

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Images of cameras and programs that are not read here.
UNREAD = (
    *(
        ".heic",
        ".heif",
        ".hif",
        ".avif",
        ".jxl",
        ".jp2",
        ".svg",
        ".psd",
        ".xcf",
        ".kra",
        ".clip",
        ".tga",
        ".exr",
        ".hdr",
    ),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"),
)
MASK_SUFFIX = ".mask.png"
_METADATA = ("metadata.jsonl", "metadata.csv", "captions.json")
_CAPTION_SUFFIXES = (".txt", ".caption")
_MAX_CAPTION = 10_000
# What a file of UTF-16 or UTF-32 begins with; the longer ones first, since one begins with another.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# A word, an ending such as 's, a digit or a run of signs is at least one token of CLIP.
_PIECES = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)
# What CLIP's text encoders read of a caption, without the tokens of beginning and end.
TOKENS = 75
# Shapes further from a square than this, either way, are cut: the model knows no such shapes.
MOST_STRETCHED = 2.0
# An image of which less than this is seen is worth a word; squares are asked for, so more may go there.
_LEAST_SEEN, _LEAST_SEEN_IN_SQUARES = 0.75, 0.5
_MOST_REMARKS = 10
LEFT_OUT = "; it is left out"


@dataclass(frozen=True)
class TrainingImage:
    """An image to train on.

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
    images: list[TrainingImage] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read_folder(folder: Path, config: DataConfig, progress: Callable[[int, int], None] | None = None) -> Dataset:
    """Look at every image in `folder` and below it.

    Args:
        progress: called with how many were looked at and how many there are.

    Raises:
        DatasetError: no such folder, or no image in it can be used.
        ConfigError: captions of the kind asked for are not there.
    """
    files = sorted(_files(folder))
    dataset = Dataset(folder)
    beside = _Beside()
    captions = _captions_file(folder, config)
    seen: dict[str, int] = {}  # where in the list an image with these bytes stands
    for index, path in enumerate(files):
        if progress is not None:
            progress(index, len(files))
        found = _image(path, folder, config, captions, beside, dataset.problems)
        if found is None:
            continue
        if found.digest not in seen:
            seen[found.digest] = len(dataset.images)
            dataset.images.append(found)
            continue
        used, left_out = dataset.images[seen[found.digest]], found
        if used.caption is None and found.caption is not None:  # the work of writing a caption is not lost
            used, left_out = found, used
            dataset.images[seen[found.digest]] = found
        same = used.path.relative_to(folder)
        dataset.problems.append(Problem(left_out.path, f"the same image as {same}; one of them is used", True))
    _check(dataset, files, config)
    return dataset


def count_tokens(text: str) -> int:
    """Return how many tokens CLIP makes of a text at least, without its vocabulary."""
    return len(_PIECES.findall(text))


def note_long_captions(
    dataset: Dataset, caption: Callable[[TrainingImage, int], str], count: Callable[[str], int], room: int
) -> None:
    """Add a problem for each image whose caption the text encoder does not read to its end.

    Args:
        caption: The caption of an image for a choice of template.
        count: How many tokens a caption takes.
        room: How many tokens the text encoder reads.
    """
    for index, image in enumerate(dataset.images):
        taken = count(caption(image, index))
        if taken > room:
            what = f"has a caption of {taken} tokens, of which the model reads the first {room}; shorten it"
            dataset.problems.append(Problem(image.path, what, False))


def caption_of(image: TrainingImage, config: DataConfig, name: str, choice: int) -> str:
    """The caption of an image; `choice` is any whole number, which picks one of the templates."""
    text = image.caption
    if text is None:
        text = config.templates[choice % len(config.templates)] if config.templates else "{name}"
    text = text.replace("{name}", name).replace("{filename}", _words(image.path.stem))
    return f"{config.prefix} {text}".strip() if config.prefix else text


def trained_caption(image: TrainingImage, config: Config, choice: int) -> str:
    """Return the caption that a training takes; for an embedding it always has the word that is trained.

    The word comes first where the caption lacks it, since the text encoder does not read long captions to their end.
    """
    caption = caption_of(image, config.data, config.name if config.method == "hypernetwork" else config.token, choice)
    if config.method == "embedding" and config.token not in caption:
        return f"{config.token}, {caption}" if caption else config.token
    return caption


def count_with_word(config: Config, count: Callable[[str], int], vectors: int) -> Callable[[str], int]:
    """Count the word of an embedding as what it takes: a token for each of its vectors."""
    if config.method != "embedding":
        return count

    def counted(text: str) -> int:
        parts = text.split(config.token)
        return sum(map(count, parts)) + vectors * (len(parts) - 1)

    return counted


def remarks(dataset: Dataset, config: DataConfig) -> Iterator[str]:
    """What somebody who trains on the images should know of them, in lines."""
    told = [f"{problem.path.name} {problem.what}{LEFT_OUT * problem.fatal}" for problem in dataset.problems]
    yield from told[:_MOST_REMARKS]
    if len(told) > _MOST_REMARKS:
        yield f"and {len(told) - _MOST_REMARKS} more; `hnloader dataset check` lists them"
    bare = sum(image.caption is None for image in dataset.images)
    if bare and config.captions == "auto":
        none = f"none of the {bare} images has a caption of its own"
        some = f"{bare} of the images without a caption of their own"
        whose = none if bare == len(dataset.images) else some
        yield f"{whose}, so that templates are taken: a .txt beside each works better"


def fingerprint_of(dataset: Dataset) -> str:
    """Which images with which captions these are, as a hash."""
    parts = [(image.digest, image.caption) for image in dataset.images]
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:16]


# -- finding and opening


def _files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise DatasetError(f"{folder} {what}; name the folder with the images to train on")
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        mask = path.name.lower().endswith(MASK_SUFFIX)
        if path.suffix.lower() in (*SUFFIXES, *UNREAD) and not hidden and not mask and path.is_file():
            yield path


class _Beside:
    """Files by name, whatever their suffixes' case: cameras write IMG_1.JPG, and some programs IMG_1.TXT."""

    def __init__(self) -> None:
        self._folders: dict[Path, dict[tuple[str, str], Path]] = {}

    def find(self, path: Path, suffix: str) -> Path | None:
        """Return the file beside `path` that has its stem and this suffix, in lower case if there is one."""
        exact = path.with_name(path.stem + suffix)
        if exact.is_file():
            return exact
        if path.parent not in self._folders:
            self._folders[path.parent] = {
                (each.name[: -len(known)], known): each
                for each in _listed(path.parent)
                for known in (*_CAPTION_SUFFIXES, MASK_SUFFIX)
                if each.name.lower().endswith(known)
            }
        return self._folders[path.parent].get((path.stem, suffix))


def _listed(folder: Path) -> list[Path]:
    """Return the files in a folder, by name; none where it cannot be listed."""
    try:
        return sorted(each for each in folder.iterdir() if each.is_file())
    except OSError:
        return []


def _unread(what: str) -> str:
    return f"is {what}, which hnloader does not read; convert it to PNG or JPEG"


def _image(
    path: Path,
    folder: Path,
    config: DataConfig,
    captions: dict[str, str],
    beside: _Beside,
    problems: list[Problem],
) -> TrainingImage | None:
    if path.suffix.lower() in UNREAD:
        problems.append(Problem(path, _unread(f"{path.suffix.removeprefix('.').upper()}"), True))
        return None
    try:
        digest = sha256_of(path)
        found = open_image(path, shortest=SMALLEST)
    except (OSError, HypernetworkError, MemoryError) as error:
        reason = _reason(error).removeprefix(f"{path}: ")
        problems.append(Problem(path, _unread("HEIC or AVIF") if _is_heif(path) else f"cannot be read: {reason}", True))
        return None
    size, frames, alpha = found.size, found.frames, has_alpha(found.image)
    if min(size) < SMALLEST:
        problems.append(Problem(path, f"is tiny ({size[0]} x {size[1]}); at least {SMALLEST} pixels are needed", True))
        return None
    if frames > 1:
        problems.append(Problem(path, f"is animated ({frames} frames); the first is used", False))
    seen = _seen(size, config)
    if seen < (_LEAST_SEEN if config.buckets else _LEAST_SEEN_IN_SQUARES):
        what = f"is {size[0]} x {size[1]}: only {seen:.0%} of it, from the middle, is trained on; cut it into pieces"
        problems.append(Problem(path, f"{what} no more than twice as long as wide", False))
    return TrainingImage(
        path,
        digest,
        size,
        _caption(path, folder, config, captions, beside, problems),
        beside.find(path, MASK_SUFFIX),
        alpha,
    )


def _seen(size: tuple[int, int], config: DataConfig) -> float:
    """Return which share of an image of this size is left when it is cut to a shape that is trained at."""
    stretched = max(size) / min(size)
    return min((MOST_STRETCHED if config.buckets else 1.0) / stretched, 1.0)


def _is_heif(path: Path) -> bool:
    """Return True for what phones write, under whatever name."""
    try:
        with open_regular(path) as file:
            return file.read(8)[4:] == b"ftyp"
    except OSError:
        return False


def open_image(path: Path, *, shortest: int | None = None) -> ReadImage:
    """Read an image; see `hnloader.images.read_image`, also for what it raises."""
    try:
        return read_image(path, PHOTOS, shortest=shortest)
    except UnknownFormatError as error:
        raise UnknownFormatError("it is no image of a known kind") from error


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]


# -- captions


def _captions_file(folder: Path, config: DataConfig) -> dict[str, str]:
    """Captions of a metadata file by the image's path within the folder."""
    if config.captions not in ("auto", "metadata"):
        return {}
    there = {path.name.lower(): path for path in reversed(_listed(folder))}
    path = next((there[name] for name in _METADATA if name in there), None)
    if path is None:
        if config.captions == "metadata":
            raise ConfigError(f"data.captions is 'metadata', but {folder} has none of {', '.join(_METADATA)}")
        return {}
    try:
        return dict(_metadata_entries(path))
    except (OSError, ValueError, KeyError, TypeError, csv.Error, RecursionError) as error:
        raise DatasetError(
            f"{path} cannot be read ({_reason(error)}); entries with file_name and text were expected"
        ) from error


def _metadata_entries(path: Path) -> Iterator[tuple[str, str]]:
    text, kind = _read_text(path), path.suffix.lower()
    if kind == ".csv":
        for row in csv.DictReader(text.splitlines()):
            if None in row:
                raise ValueError("a line has more values than the first one has names; put texts with commas in quotes")
            if row["text"] is not None:
                yield row["file_name"], row["text"]
    elif kind == ".jsonl":
        for line in filter(str.strip, text.splitlines()):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise TypeError(f"a line holds a {type(row).__name__}")
            yield _string(row["file_name"]), _string(row["text"])
    else:
        entries = json.loads(text)
        if not isinstance(entries, dict):
            raise TypeError(f'it holds a {type(entries).__name__}, not {{"NAME.png": "caption", ...}}')
        for name, caption in entries.items():
            yield name, _string(caption)


def _string(value: object) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"{json.dumps(value)[:80]} is not text")


def _read_text(path: Path) -> str:
    """Return a text in UTF-8, or in UTF-16 or UTF-32 where the file begins with their mark.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is in another encoding, which cannot be told from its bytes.
    """
    data = read_regular(path)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"it is not in {'UTF-8' if encoding == 'utf-8' else encoding.upper()}; save it as UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError("it is not in UTF-8; save it as UTF-8")
    return text


def _caption(
    path: Path, folder: Path, config: DataConfig, captions: dict[str, str], beside: _Beside, problems: list[Problem]
) -> str | None:
    kind = config.captions
    if kind == "filename":
        return _words(path.stem)
    found: str | None = None
    if kind in ("auto", "sidecar"):
        found = _sidecar(path, beside, problems)
    if found is None and kind in ("auto", "metadata"):
        found = captions.get(path.relative_to(folder).as_posix(), captions.get(path.name))
    if found is None and kind in ("sidecar", "metadata"):
        problems.append(Problem(path, f"has no caption ({kind}); a template is taken", False))
    return found


def _sidecar(path: Path, beside: _Beside, problems: list[Problem]) -> str | None:
    """The text beside the image: NAME.txt or NAME.caption."""
    for suffix in _CAPTION_SUFFIXES:
        found = beside.find(path, suffix)
        if found is None:
            continue
        try:
            text = " ".join(_read_text(found).split())
        except (OSError, ValueError) as error:
            problems.append(Problem(found, f"cannot be read: {_reason(error)}", False))
            continue
        if text:
            return text[:_MAX_CAPTION]
        problems.append(Problem(found, "is empty; a template is taken", False))
    return None


def _words(stem: str) -> str:
    """A file's name as words: without numbers before it and separators in it."""
    return " ".join(re.sub(r"[_\-+.]+", " ", re.sub(r"^[\d\s_\-]+(?=\D)", "", stem)).split()) or stem


def _check(dataset: Dataset, files: list[Path], config: DataConfig) -> None:
    if not files:
        raise DatasetError(f"{dataset.folder} has no images ({', '.join(SUFFIXES)}); put some there")
    if not dataset.images:
        first = next(problem for problem in dataset.problems if problem.fatal)
        raise DatasetError(
            f"none of the {len(files)} images in {dataset.folder} can be used; {first.path.name} {first.what}"
        )
    if len(dataset.images) == 1:
        dataset.problems.append(
            Problem(dataset.images[0].path, "is the only image: it will be learned by heart; 5 to 50 work well", False)
        )
    if config.masks and not any(image.mask or image.alpha for image in dataset.images):
        dataset.problems.append(
            Problem(dataset.folder, f"has no masks (NAME{MASK_SUFFIX}) and no transparent images", False)
        )
