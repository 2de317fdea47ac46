"""Saved states, their folder and what stands beside them, changed by somebody: an error of ours, or nothing at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

from hnloader.errors import HypernetworkError
from hnloader.training import prepare, read_config
from hnloader.training.config import Config
from hnloader.training.loop import folder_of
from hnloader.training.state import states
from hnloader.training.status import NAME, Status, read_status, write_status

KEY = "hnloader.training"
OTHERS: tuple[Any, ...] = (None, True, -1, "x", [1], {"a": 1}, 10**400)
Settings = Callable[..., Config]


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images and what a training of two steps leaves."""
    import numpy as np
    from PIL import Image

    folder = tmp_path_factory.mktemp("trained")
    (folder / "images").mkdir()
    for index in range(6):
        values = np.random.default_rng(index).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(values).save(folder / "images" / f"{index}.png")
    prepare(config_in(folder, tiny_model)).run()
    return folder


def config_in(folder: Path, model: Path, **changes: object) -> Config:
    given = {"model": str(model), "images": str(folder / "images"), "output": str(folder / "style.pt"), "steps": 2}
    given |= {"measure_every": 1, "previews.every": 0, "keep": 1, "ema": 0.9, "save_every": 2}
    return read_config(None, {**given, **changes})


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "copied")


def state_in(folder: Path) -> Path:
    (found,) = states(folder_of(folder / "style.pt"))
    return found


def parts(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safetensors.safe_open(path, framework="pt") as file:
        return load_file(path), json.loads(file.metadata()[KEY])


def go_on(folder: Path, model: Path) -> None:
    """Resume for a step."""
    prepare(config_in(folder, model, steps=3), resume=True).run()


def places(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested values; of the settings and of lists the first."""
    if at:
        yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in list(inner)[: 1 if isinstance(value, list) or at[-1:] in (("config",), ("scalars",)) else None]:
        yield from places(each, (*at, key))


def changed(value: Any, at: tuple[Any, ...], new: object) -> Any:
    """The values with one in its place, or without it where `new` is "gone"."""
    value = json.loads(json.dumps(value))
    holder = value
    for key in at[:-1]:
        holder = holder[key]
    if new == "gone":
        del holder[at[-1]]
    else:
        holder[at[-1]] = new
    return value


def test_descriptions_with_other_values_never_fail_in_another_way(copied: Path, tiny_model: Path) -> None:
    """Whatever a value is replaced by, it is refused with an error of ours or does no harm."""
    path = state_in(copied)
    tensors, about = parts(path)
    refused = 0
    for at in places(about):
        for new in (*OTHERS, "gone"):
            save_file(tensors, path, metadata={KEY: json.dumps(changed(about, at, new))})
            try:
                resumed = resume_again(copied, tiny_model)
            except HypernetworkError as error:
                assert str(path) in str(error)
                refused += 1
            else:
                assert resumed.state.step >= 0
    assert refused > 60


PREPARED: dict[Path, Any] = {}


def resume_again(folder: Path, model: Path) -> Any:
    """Resume a training that was prepared once: preparing takes longest, and reading a state sets all there is."""
    if folder not in PREPARED:
        PREPARED[folder] = prepare(config_in(folder, model, steps=3), resume=True)
    training = PREPARED[folder]
    training.resume()
    training._step(3)
    training._measure(3)
    training._save(3)
    training._event()
    training._nothing_better()
    for path in states(training.folder)[1:]:
        path.unlink()
    return training


@pytest.mark.parametrize(
    "description", ["[]", "null", "3", '"x"', "{}", "{", "[" * 50_000, "\0", '{"step": NaN}'], ids=lambda text: text[:9]
)
def test_descriptions_of_another_shape(description: str, copied: Path, tiny_model: Path) -> None:
    path = state_in(copied)
    save_file(parts(path)[0], path, metadata={KEY: description})
    with pytest.raises(HypernetworkError, match="state-00000002"):
        go_on(copied, tiny_model)


def shapes(tensors: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors with one changed, gone, or added."""
    names = [*dict.fromkeys(next(n for n in tensors if n.startswith(kind)) for kind in ("weights", "average"))]
    names += [name for name in tensors if name.startswith("optimizer.0.")]
    for name in names:
        rest = {key: value for key, value in tensors.items() if key != name}
        tensor = tensors[name]
        yield {**rest, name: torch.zeros(3, 5, 7)}
        yield {**rest, name: torch.zeros(0)}
        yield {**rest, name: torch.full_like(tensor, float("nan"))}
        yield {**rest, f"{name}.more": tensor}
        yield {**rest, name.replace(".0", ".zero", 1): tensor}
        yield {**rest, name.replace(".0", ".99", 1): tensor}
        for dtype in (torch.int8, torch.bool, torch.float16, torch.complex64):
            yield {**rest, name: tensor.to(dtype)}
        if not name.endswith("step"):
            yield rest
    yield {}
    yield {**tensors, "weights.99": torch.zeros(1), f"weights.{len(names) + 99}": torch.zeros(1)}
    yield {**tensors, "optimizer.x.y": torch.zeros(1), "optimizer": torch.zeros(1)}
    yield {**tensors, "optimizer.0.exp_avg.inner": torch.zeros(1)}


def test_tensors_that_are_changed_never_fail_in_another_way(copied: Path, tiny_model: Path) -> None:
    path = state_in(copied)
    tensors, about = parts(path)
    refused = done = 0
    for each in shapes(tensors):
        save_file(each, path, metadata={KEY: json.dumps(about)})
        try:
            resume_again(copied, tiny_model)
        except HypernetworkError:
            refused += 1
        done += 1
    assert done > refused > 20


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("how", ["cut", "zeros", "ones", "flipped"])
def test_damaged_bytes(share: float, how: str, copied: Path, tiny_model: Path) -> None:
    path = state_in(copied)
    data = path.read_bytes()
    at = min(int(len(data) * share), len(data) - 1)
    if how == "cut":
        data = data[:at]
    elif how == "flipped":
        data = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]
    else:
        data = data[:at] + (b"\0" if how == "zeros" else b"\xff") * (len(data) - at)
    path.write_bytes(data)
    try:
        go_on(copied, tiny_model)
    except HypernetworkError as error:
        assert str(error)


def test_a_damaged_state_gives_way_to_the_one_before(copied: Path, tiny_model: Path) -> None:
    good = state_in(copied)
    for name, change in (("3", lambda about: {**about, "step": "x"}), ("4", lambda about: {**about, "history": 3})):
        tensors, about = parts(good)
        newer = good.with_name(f"state-0000000{name}.safetensors")
        save_file(tensors, newer, metadata={KEY: json.dumps(change(about))})
    training = prepare(config_in(copied, tiny_model), resume=True)
    assert training.state.step == 2
    assert sum("skipped" in note and "damaged" in note for note in training.notes) == 2


def test_a_state_that_is_refused_changes_nothing(copied: Path, tiny_model: Path) -> None:
    path = state_in(copied)
    tensors, about = parts(path)
    save_file({**tensors, "optimizer.0.exp_avg": torch.zeros(2)}, path, metadata={KEY: json.dumps(about)})
    training = prepare(config_in(copied, tiny_model), restart=False, judged=True)
    before = [parameter.detach().clone() for parameter in training.adapter.parameters]
    with pytest.raises(HypernetworkError, match="does not fit"):
        training.resume()
    assert all(torch.equal(a, b) for a, b in zip(before, training.adapter.parameters, strict=True))
    assert training.optimizer.state_dict()["state"] == {}


# -- the folder


def replaced(path: Path, by: str) -> None:
    """Put something else where a file or a folder is."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if by == "folder":
        path.mkdir(parents=True)
    elif by == "file":
        path.write_bytes(b"something else")
    elif by == "link":
        path.symlink_to(path.with_name("nowhere"))


STATE = "state-00000002.safetensors"


@pytest.mark.parametrize("by", ["folder", "file", "link"])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        *(
            (name, "resume")
            for name in ("", STATE, "cache", "lock", "best.pt", "previews", "status.json", "report.html")
        ),
        *((name, "restart") for name in ("", STATE)),
    ],
)
def test_other_things_in_the_folder(name: str, by: str, option: str, copied: Path, tiny_model: Path) -> None:
    replaced(folder_of(copied / "style.pt") / name, by)
    changes = {"steps": 3, "previews.every": 1, "previews.steps": 1, "previews.count": 1}
    try:
        result = prepare(config_in(copied, tiny_model, **changes), **{option: True}).run()
    except HypernetworkError as error:
        assert str(error)
    else:
        assert result.step == 3


@pytest.mark.parametrize(
    ("how", "at"), [("cut", 0.0), ("cut", 0.5), ("flipped", 0.1), ("flipped", 0.5), ("other size", 0.5), ("text", 0.0)]
)
def test_damaged_previews_stop_nothing(at: float, how: str, copied: Path, tiny_model: Path) -> None:
    from PIL import Image

    changes = {"previews.every": 1, "previews.steps": 1, "previews.count": 2}
    prepare(config_in(copied, tiny_model, **changes), restart=True).run()
    for path in (folder_of(copied / "style.pt") / "previews").iterdir():
        data = path.read_bytes()
        place = int(len(data) * at) + 1
        if how == "cut":
            path.write_bytes(data[:place])
        elif how == "flipped":
            path.write_bytes(data[:place] + bytes(each ^ 0xFF for each in data[place : place + 9]) + data[place + 9 :])
        elif how == "other size":
            Image.new("L", (int(10 * at) + 1, 7)).save(path)
        else:
            path.write_text("x" * int(100 * at))
    messages: list[str] = []
    training = prepare(config_in(copied, tiny_model, steps=3, **changes), resume=True)
    assert training.run(lambda event: messages.append(event.message)).step == 3
    assert (copied / "style.training" / "report.html").is_file()


def test_cached_tensors_of_other_shapes_are_made_again(copied: Path, tiny_model: Path) -> None:
    cached = sorted((folder_of(copied / "style.pt") / "cache").glob("*.safetensors"))
    expected = prepare(config_in(copied, tiny_model), resume=True).held_out_loss()
    for change in (
        lambda tensors: {name: tensor[:1] for name, tensor in tensors.items()},
        lambda tensors: {name: tensor.unsqueeze(0) for name, tensor in tensors.items()},
        lambda tensors: {name: tensor.to(torch.float16) for name, tensor in tensors.items()},
        lambda tensors: {name: tensor[..., :1] for name, tensor in tensors.items()},
        lambda tensors: {name: torch.zeros(0) for name, tensor in tensors.items()},
        lambda tensors: {},
    ):
        for path in cached:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata()
            changed_tensors = {name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}
            save_file(changed_tensors, path, metadata=metadata)
        training = prepare(config_in(copied, tiny_model), resume=True)
        assert training.held_out_loss() == expected


@pytest.mark.parametrize("value", [*OTHERS, "gone"])
def test_a_status_of_other_types_is_none(value: object, tmp_path: Path) -> None:
    write_status(tmp_path, Status("running", 3, 10, 0.5, 0.4, (0.3, 2), 1e-3, 5.0, 2.0, "well", 1, [{"step": 1.0}]))
    sound = json.loads((tmp_path / NAME).read_text())
    assert read_status(tmp_path) is not None
    for key in sound:
        (tmp_path / NAME).write_text(json.dumps(changed(sound, (key,), value)))
        found = read_status(tmp_path)
        if found is not None:
            assert f"{found.step:,} {found.steps:,} {found.phase} {found.message[:1]} {found.pid:d} {found.seconds:.0f}"
            assert all(number is None or number * 1.0 is not None for number in (found.loss, found.rate, found.left))
            assert all(each["step"] >= 0 for each in found.history)
    for text in ("[]", "null", "3", "{", "[" * 100_000, "\xff"):
        (tmp_path / NAME).write_text(text, encoding="latin-1")
        assert read_status(tmp_path) is None
