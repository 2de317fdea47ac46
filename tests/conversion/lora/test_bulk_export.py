"""Exporting many hypernetworks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import hnloader
from hnloader.conversion.bulk import convert_many
from hnloader.conversion.lora import LoraOptions, open_base
from hnloader.conversion.lora.bulk_export import LoraExporter
from hnloader.conversion.planning import plan
from tests.support.lora_models import LYCORIS, make_affine
from tests.support.small_models import WIDTHS, make_unet


def lycoris(**changes: Any) -> LoraOptions:
    return LoraOptions(**{"kind": "lycoris", "strength": 0.8, **changes})


def test_up_to_date_depends_on_source_model_and_settings(tmp_path: Path) -> None:
    make_unet().save_pretrained(tmp_path / "model")
    base = open_base(tmp_path / "model")
    source, target = tmp_path / "style.pt", tmp_path / "style-lycoris.safetensors"
    hnloader.save(make_affine(WIDTHS["sd1"]), source)
    exporter = LoraExporter(base, lycoris())
    exporter.convert(source, target)
    assert exporter.is_current(source, target)
    assert exporter.verify(source, target) == {"verified": ["tensors", "source", "settings"]}
    for changes in ({"strength": 0.7}, {"kind": "lora"}, {"dtype": torch.float16}):
        assert not LoraExporter(base, lycoris(**changes)).is_current(source, target)
    other = make_unet()
    for parameter in other.parameters():
        parameter.mul_(0.5)
    other.save_pretrained(tmp_path / "other" / "model")
    assert not LoraExporter(open_base(tmp_path / "other" / "model"), lycoris()).is_current(source, target)
    hnloader.save(make_affine(WIDTHS["sd1"], seed=5), source)
    assert not exporter.is_current(source, target)


def test_damaged_files_are_not_up_to_date(tmp_path: Path) -> None:
    source, target = tmp_path / "style.pt", tmp_path / "style-lycoris.safetensors"
    hnloader.save(make_affine(WIDTHS["sd1"]), source)
    exporter = LoraExporter(open_base(make_unet()), LYCORIS)
    exporter.convert(source, target)
    data = bytearray(target.read_bytes())
    data[-5] ^= 1
    target.write_bytes(data)
    with pytest.raises(hnloader.HypernetworkError, match=target.name):
        exporter.verify(source, target)
    target.write_bytes(data[:-7])
    assert not exporter.is_current(source, target)


@pytest.mark.parametrize(("existing", "outcome"), [("skip", "skipped"), ("rename", "converted")])
def test_existing_files_stay(existing: Any, outcome: str, tmp_path: Path) -> None:
    source, target = tmp_path / "ink.safetensors", tmp_path / "x.safetensors"
    hnloader.save(make_affine(WIDTHS["sd1"]), source)
    target.write_bytes(b"before")
    planned = plan([source], suffix="-lycoris.safetensors", out=target)
    (result,) = convert_many(planned, LoraExporter(open_base(make_unet()), LYCORIS), on_existing=existing)
    assert result.outcome == outcome, result.reason
    assert target.read_bytes() == b"before"
    assert (tmp_path / "x-2.safetensors").exists() == (existing == "rename")


def test_the_header_shows_the_family(tmp_path: Path) -> None:
    source = tmp_path / "style.pt"
    hnloader.save(make_affine((40, 64)), source)
    with pytest.raises(hnloader.NoMatchingSitesError):
        LoraExporter(open_base(make_unet("sd1"))).check_source(source)
    LoraExporter(open_base(make_unet("sd2"))).check_source(source)
