"""`load_plain` reads any torch.save file of plain data as torch does, and refuses code on every torch."""

from __future__ import annotations

import io

import pytest
import torch

from hnloader.errors import CorruptFileError, HypernetworkError, UnsafeFileError
from hnloader.formats.checkpoint import load_plain


class Evil:
    def __reduce__(self) -> object:
        return (print, ("run",))


def saved(content: object, legacy: bool) -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer


@pytest.mark.parametrize("legacy", [False, True])
def test_optimizer_state_equals_torch_load(legacy: bool) -> None:
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    buffer = saved({"state": optimizer.state_dict(), "modules": layer.state_dict(), "step": 7}, legacy)
    found = load_plain(buffer)
    other = torch.optim.AdamW(layer.parameters())
    other.load_state_dict(found["state"])
    assert found["step"] == 7
    for key, value in layer.state_dict().items():
        assert torch.equal(found["modules"][key], value)
    for key, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(other.state_dict()["state"][0][key], value)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused(legacy: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsafeFileError):
        load_plain(saved({"state_dict": {}, "x": Evil()}, legacy))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_file_is_refused(legacy: bool) -> None:
    data = saved({"a": torch.randn(100)}, legacy).getvalue()
    for size in (10, len(data) // 2, len(data) - 5):
        with pytest.raises(HypernetworkError):
            load_plain(io.BytesIO(data[:size]))


def test_sizes_are_checked_beside_skipped_classes(tmp_path: object) -> None:
    buffer = saved({"x": torch.zeros(4)}, legacy=False)
    import zipfile

    changed = io.BytesIO()
    with zipfile.ZipFile(buffer) as archive, zipfile.ZipFile(changed, "w") as result:
        for info in archive.infolist():
            data = archive.read(info)
            if info.filename.endswith("data.pkl"):
                data = data.replace(b"K\x04", b"K\x7f")[:-1] + b"X\x01\x00\x00\x00yctyping\nAny\ns."
            result.writestr(info.filename, data)
    with pytest.raises(CorruptFileError):
        load_plain(changed)
