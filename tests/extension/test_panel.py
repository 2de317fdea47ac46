"""Rows as the value of the panel and of the API."""

from __future__ import annotations

import torch

from tests.support.standins.webui import Webui


def image(webui: Webui, prompt: str, **fields: object) -> torch.Tensor:
    return webui.generate(prompt, **fields).images[0]


def test_rows_equal_tags_and_are_in_the_infotext(running: Webui) -> None:
    tagged = image(running, "a<hypernet:ink:0.5:start=0.5><hypernet:wash>")
    rows = [{"name": "ink", "strength": 0.5, "start": 0.5}, {"name": "wash"}]
    for given in (rows, "<hypernet:ink:0.5:start=0.5><hypernet:wash>"):
        job = running.generate("a", alwayson_scripts={"Hypernetworks": [given]})
        assert torch.equal(job.images[0], tagged)
        assert "Hypernet rows: " in job.infotexts[0]
        assert running.hooks == 0
    assert not running.reports
