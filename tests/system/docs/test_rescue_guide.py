"""Run the commands of docs/convert.md on the folder that it describes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import hnloader.demo
from tests.support.builders import write
from tests.support.mixed import not_finite, web_page, with_code
from tests.support.paths import GOLDENS, ROOT

GUIDE = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")
HELD = {
    "anime": ("bf16_linear.pt", "relu_121.pt", "softsign_15.pt", "swish_121.pt"),
    "from 2022": (
        "early_named.pt",
        "linear_121.pt",
        "nai_linear1.pt",
        "oct22_dropout_before_norm.pt",
        "old_pickle_format.pt",
    ),
    ".": ("gelu_full.pt", "hns_sequence.hns", "mp_residual_linear.pt"),
}
# These differ between runs, and for fits between processors.
TIMES = re.compile(r"in [\d.]+ s, [\d.]+ [kMG]?B/s")
FIGURES = re.compile(r"\d+(\.\d+)?")


def fill(folder: Path) -> None:
    """Make the folder of the guide."""
    for name, files in HELD.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy(GOLDENS / file, folder / name)
    shutil.copy(hnloader.demo.hypernetwork_paths()["outline"], folder)
    key = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k"
    save_file(
        {f"{key}.lora_down.weight": torch.ones(2, 8), f"{key}.lora_up.weight": torch.ones(8, 2)},
        folder / "anime" / "ink-lora.safetensors",
    )
    web_page(folder / "anime" / "watercolor.pt")
    write(folder / "badhands.pt", {"string_to_param": {"*": torch.ones(1, 8)}, "name": "badhands", "step": 5})
    with_code(folder / "free-style.pt")
    not_finite(folder / "from 2022" / "burnt-20000.pt")
    half = (GOLDENS / "relu_121.pt").read_bytes()
    (folder / "from 2022" / "half.pt").write_bytes(half[: len(half) // 2])


def commands() -> list[tuple[str, list[str]]]:
    """Return each command of the guide with the lines below it."""
    found: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif found and block.startswith("$ "):
                found[-1][1].append(line.rstrip())
    return found


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """Return the folder of the run, and the output of each command."""
    place = tmp_path_factory.mktemp("guide")
    fill(place / "old-files")
    script = "\n".join(f"{command}\nprintf '\\n=====\\n'" for command, _ in commands())
    # Read each status right after its command.
    script = script.replace("printf '\\n=====\\n'\necho $?\n", "status=$?; printf '\\n=====\\n'\necho $status\n")
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "COLUMNS": "400", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return place, [part.strip("\n").splitlines() for part in done.stdout.split("\n=====\n")]


@pytest.mark.slow
def test_commands_print_the_documented_output(shown: tuple[Path, list[list[str]]]) -> None:
    for (command, expected), given in zip(commands(), shown[1], strict=False):
        varies = FIGURES if "export-lora" in command else TIMES
        printed = {varies.sub("", line).rstrip() for line in given}
        missing = [line for line in expected if line.strip(" .") and varies.sub("", line).rstrip() not in printed]
        assert not missing, f"$ {command}\nprinted\n" + "\n".join(given) + "\nand not\n" + "\n".join(missing)


@pytest.mark.slow
def test_the_lora_loads_in_diffusers(shown: tuple[Path, list[list[str]]]) -> None:
    code = next(block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "load_lora_weights" in block)
    code = code.replace("your/model", str(hnloader.demo.pipeline_folder()))
    code = code.replace('"outline-lora.safetensors"', repr(str(shown[0] / "outline-lora.safetensors")))
    names: dict[str, object] = {}
    exec("from diffusers import StableDiffusionPipeline\n" + code, names)  # noqa: S102 - the code of this guide
    pipe = names["pipe"]
    assert pipe.get_active_adapters()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_sources_stay_unchanged(shown: tuple[Path, list[list[str]]]) -> None:
    for name, files in HELD.items():
        for file in files:
            assert (shown[0] / "old-files" / name / file).read_bytes() == (GOLDENS / file).read_bytes()
