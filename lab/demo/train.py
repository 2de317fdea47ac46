"""Make the bundled pipeline and its hypernetworks from scratch: `python -m lab.demo.train STAGE --work FOLDER`.

Stages, in order:

- vae: train the VAE on scenes in every style
- decoder: train its decoder on, with the encoder fixed (may run after or beside the UNet)
- unet: train the UNet and the text encoder on plain scenes
- export: write the pipeline in half precision
- style: train one hypernetwork (--style) and write its .pt file
- evaluate: prompt adherence and style scores

Each training stage keeps its checkpoint in the work folder and resumes from it. A stage ends after
--minutes of training or --steps, whichever comes first; the learning rate falls over that time.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from hnloader.demo import hypernetwork_paths, pipeline_folder
from hnloader.demo.sampling import load_pipeline
from hnloader.network import Hypernetwork
from lab.demo.evaluate import adherence, measure_style
from lab.demo.evaluate import main as evaluate
from lab.demo.scene_captions import validation_scenes
from lab.demo.training.common import Budget
from lab.demo.training.export import export_hypernetwork, export_pipeline
from lab.demo.training.hypernetworks import RECIPES, train_hypernetwork
from lab.demo.training.unet import load_trained, new_pipeline, train_unet
from lab.demo.training.vae import even_out_latents, load_vae, train_decoder, train_vae, with_decoder

# Prompts of the reports during training; not those of the final figure, which has another seed.
_REPORT_SEED = 5


def _vae(chosen: argparse.Namespace) -> None:
    train_vae(chosen.work, chosen.budget, batch=chosen.batch or 16)


def _decoder(chosen: argparse.Namespace) -> None:
    vae = load_pipeline(chosen.start).vae if chosen.start else load_vae(chosen.work)
    train_decoder(chosen.work, vae, chosen.budget, **_given(chosen, "batch", "rate", "seed"))


def _given(chosen: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the options that were given; the stages have defaults for the others."""
    return {name: value for name in names if (value := getattr(chosen, name)) is not None}


def _start(chosen: argparse.Namespace) -> StableDiffusionPipeline:
    if chosen.start:
        return load_pipeline(chosen.start)
    vae = load_vae(chosen.work)
    even_out_latents(vae)
    return new_pipeline(chosen.work, vae)


def _unet(chosen: argparse.Namespace) -> None:
    scenes = validation_scenes(chosen.report_prompts, seed=_REPORT_SEED)

    def report(pipeline: StableDiffusionPipeline) -> str:
        pipeline.set_progress_bar_config(disable=True)
        return adherence(pipeline, scenes).line()

    options = _given(chosen, "batch", "rate", "images", "seed")
    train_unet(chosen.work, _start(chosen), chosen.budget, **options, report=report)


def _export(chosen: argparse.Namespace) -> None:
    pipeline = _start(chosen)
    if chosen.start:
        with_decoder(chosen.work, pipeline.vae)
    if not chosen.start or (chosen.work / "unet.pt").exists():
        load_trained(chosen.work, pipeline)
    size = export_pipeline(pipeline, chosen.out / "pipeline", (chosen.start or chosen.work) / "tokenizer")
    print(f"{chosen.out / 'pipeline'}: {size / 1e6:.2f} MB")


def _style(chosen: argparse.Namespace) -> None:
    folder = chosen.out / "pipeline"
    pipeline = load_pipeline(folder)
    recipe = RECIPES[chosen.style]
    scenes = validation_scenes(chosen.report_prompts, seed=_REPORT_SEED)

    def report(hypernetwork: Hypernetwork) -> str:
        measures = measure_style(pipeline, hypernetwork, recipe.style, scenes)
        return "; ".join(f"strength {m.strength:g}: style {m.score:.2f}, held {m.held:.0%}" for m in measures)

    hypernetwork = train_hypernetwork(
        chosen.work,
        pipeline,
        recipe,
        chosen.budget,
        batch=chosen.batch or 16,
        images=chosen.images or 4_000,
        report=report,
        report_every=chosen.report_every,
    )
    export_hypernetwork(hypernetwork, folder, chosen.out / "hypernetworks" / f"{recipe.style}.pt")


def _evaluate(chosen: argparse.Namespace) -> None:
    evaluate(["--prompts", "200", "--pipeline", str(chosen.out / "pipeline")])
    if hypernetwork_paths():
        evaluate(["--prompts", "60", "--styles", "--pipeline", str(chosen.out / "pipeline")])


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "vae": _vae,
    "decoder": _decoder,
    "unet": _unet,
    "export": _export,
    "style": _style,
    "evaluate": _evaluate,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.demo.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument(
        "--out", type=Path, default=pipeline_folder().parent, help="where pipeline/ and hypernetworks/ go"
    )
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--batch", type=int, default=None, help="images in a step (default: 32 for the UNet, else 16)")
    parser.add_argument(
        "--rate", type=float, default=None, help="highest rate of UNet or decoder (default: 8e-4, 1e-3)"
    )
    parser.add_argument("--seed", type=int, default=None, help="seed of UNet or decoder (default: 0, 1)")
    parser.add_argument("--start", type=Path, default=None, help="pipeline whose UNet or decoder is trained on")
    parser.add_argument("--images", type=int, default=None, help="size of the drawn data set (UNet and style)")
    parser.add_argument("--style", choices=RECIPES, default=next(iter(RECIPES)))
    parser.add_argument("--report-every", type=int, default=1000, help="steps between measurements of a style")
    parser.add_argument("--report-prompts", type=int, default=40)
    parser.add_argument("--threads", type=int, default=None, help="processor threads (default: torch's choice)")
    chosen = parser.parse_args(arguments)
    if chosen.stage in ("vae", "decoder", "unet", "style") and chosen.minutes == math.inf and chosen.steps == 10**9:
        parser.error("expected --minutes or --steps")
    chosen.budget = Budget(chosen.steps, chosen.minutes)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    chosen.work.mkdir(parents=True, exist_ok=True)
    STAGES[chosen.stage](chosen)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
