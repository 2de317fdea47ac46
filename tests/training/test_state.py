"""Saved states that are changed, damaged, or made with other settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from hnloader.errors import ConfigError, HypernetworkError
from hnloader.training import prepare, train
from hnloader.training import state as state_module
from hnloader.training.run_folder import run_folder
from hnloader.training.state import states
from tests.support.trainings import WRONG_VALUES, Run, config_in, raises, with_value

KEY = "hnloader.training"


def state_in(folder: Path) -> Path:
    (found,) = states(run_folder(folder / "style.pt"))
    return found


def parts(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safetensors.safe_open(path, framework="pt") as file:
        return load_file(path), json.loads(file.metadata()[KEY])


def resume(folder: Path, model: Path) -> None:
    """Resume for a step."""
    prepare(config_in(folder, model, steps=3), resume=True).run()


def places(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the path of every value; only the first of the settings and of lists."""
    if at:
        yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in list(inner)[: 1 if isinstance(value, list) or at[-1:] in (("config",), ("scalars",)) else None]:
        yield from places(each, (*at, key))


@pytest.mark.slow
def test_wrong_values_in_a_state_give_an_error_or_do_no_harm(copied: Path, tiny_model: Path) -> None:
    """A HypernetworkError, or no effect."""
    path = state_in(copied)
    tensors, about = parts(path)
    refused = 0
    for at in places(about):
        for new in (*WRONG_VALUES, "gone"):
            save_file(tensors, path, metadata={KEY: json.dumps(with_value(about, at, new))})
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
    """Resume a training run that is prepared once, because preparing takes longest."""
    if folder not in PREPARED:
        PREPARED[folder] = prepare(config_in(folder, model, steps=3), resume=True)
    training = PREPARED[folder]
    training.resume()
    training.train_step(3)
    training._validate(3)
    training._save(3)
    training._event()
    training.validator.remark(training.state, "best.pt")
    for path in states(training.folder)[1:]:
        path.unlink()
    return training


@pytest.mark.parametrize(
    "description", ["[]", "null", "3", '"x"', "{}", "{", "[" * 50_000, "\0", '{"step": NaN}'], ids=lambda text: text[:9]
)
def test_malformed_headers_are_refused(description: str, copied: Path, tiny_model: Path) -> None:
    path = state_in(copied)
    save_file(parts(path)[0], path, metadata={KEY: description})
    with raises(HypernetworkError, "state-00000002"):
        resume(copied, tiny_model)


def shapes(tensors: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors with one changed, gone, or added."""
    names = [*dict.fromkeys(next(n for n in tensors if n.startswith(kind)) for kind in ("weights", "ema"))]
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


@pytest.mark.slow
def test_changed_tensors_give_an_error_or_do_no_harm(copied: Path, tiny_model: Path) -> None:
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
def test_damaged_bytes_give_an_error_or_do_no_harm(share: float, how: str, copied: Path, tiny_model: Path) -> None:
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
        resume(copied, tiny_model)
    except HypernetworkError as error:
        assert str(error)


def test_damaged_states_are_skipped(copied: Path, tiny_model: Path) -> None:
    good = state_in(copied)
    for name, change in (("3", lambda about: {**about, "step": "x"}), ("4", lambda about: {**about, "history": 3})):
        tensors, about = parts(good)
        newer = good.with_name(f"state-0000000{name}.safetensors")
        save_file(tensors, newer, metadata={KEY: json.dumps(change(about))})
    training = prepare(config_in(copied, tiny_model), resume=True)
    assert training.state.step == 2
    assert sum("Skipped" in note and "damaged" in note for note in training.notes) == 2


def test_a_refused_state_changes_nothing(copied: Path, tiny_model: Path) -> None:
    path = state_in(copied)
    tensors, about = parts(path)
    save_file({**tensors, "optimizer.0.momentum_buffer": torch.zeros(2)}, path, metadata={KEY: json.dumps(about)})
    training = prepare(config_in(copied, tiny_model), restart=False, dry_run=True)
    before = [parameter.detach().clone() for parameter in training.adapter.parameters]
    with raises(HypernetworkError, str(path), "optimizer"):
        training.resume()
    assert all(torch.equal(a, b) for a, b in zip(before, training.adapter.parameters, strict=True))
    assert training.optimizer.state_dict()["state"] == {}


def test_a_truncated_state_is_skipped(settings_of: Run) -> None:
    config = settings_of()
    train(config)
    newest = states(run_folder(Path(config.output)))[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    training = prepare(config, resume=True)
    assert training.state.step == 8
    assert any("damaged" in note for note in training.notes)


def test_a_state_for_another_architecture_is_refused(settings_of: Run) -> None:
    train(settings_of(steps=4))
    with raises(HypernetworkError, "another architecture"):
        prepare(settings_of(hypernetwork__layer_structure=[1, 3, 1]), resume=True)
    with raises(HypernetworkError, "Muon", "SGD"):
        prepare(settings_of(optimizer="sgd"), resume=True)


def test_training_continues_on_a_full_disk(settings_of: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings_of()
    real = state_module.save_file
    calls = []

    def full(tensors: object, path: Path, metadata: object = None) -> None:
        calls.append(path)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        real(tensors, path, metadata=metadata)

    monkeypatch.setattr(state_module, "save_file", full)
    messages = []
    result = prepare(config).run(lambda event: messages.append(event.message))
    assert result.reason == "done"
    assert any("Step 8:" in message and "No space left" in message for message in messages)
    folder = run_folder(result.output)
    assert [path.name for path in states(folder)] == ["state-00000004.safetensors", "state-00000012.safetensors"]
    assert not list(folder.glob(".*"))


def test_a_state_resumes_only_with_its_model(settings_of: Run, tiny_model: Path, tmp_path: Path) -> None:
    train(settings_of(steps=4))
    moved = shutil.copytree(tiny_model, tmp_path / "moved")
    assert prepare(settings_of(model=str(moved)), resume=True).state.step == 4
    unet = UNet2DConditionModel.from_pretrained(moved / "unet")
    with torch.no_grad():
        unet.conv_in.weight.mul_(1.01)
    unet.save_pretrained(moved / "unet")
    with raises(ConfigError, str(tiny_model), "moved"):
        prepare(settings_of(model=str(moved)), resume=True)


def test_resuming_with_other_images_is_reported(settings_of: Run, images: Path) -> None:
    train(settings_of(steps=4))
    assert not any("changed" in note for note in prepare(settings_of(), resume=True).notes)
    (images / "0.txt").write_text("another caption")
    assert any("training images changed" in note for note in prepare(settings_of(), resume=True).notes)


def test_training_continues_if_an_old_state_cannot_be_removed(
    settings_of: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name.startswith("state-"):
            raise OSError(30, "Read-only file system")
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    result = train(settings_of(steps=4, save_every_n_steps=1, save_total_limit=1))
    assert result.reason == "done"
    assert len(states(run_folder(result.output))) == 4
