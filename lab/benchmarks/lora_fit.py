"""Compare the error of the low-rank fit to contexts with plain SVD of the weight change, at equal rank.

    python -m lab.benchmarks.lora_fit

It uses the bundled pipeline and hypernetworks, samples contexts as `hnloader export-lora` does, and measures on
other images. Both ways approximate the same best linear map.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import hnloader
from hnloader.conversion.lora.base_model import open_base
from hnloader.conversion.lora.context_samples import Sampling, sample
from hnloader.conversion.lora.fitting import Error, fit_context_map, measure, rank_directions
from hnloader.conversion.lora.lora_chain import Chain
from hnloader.demo import hypernetwork_paths, pipeline_folder
from hnloader.network import SIDES


@dataclass(frozen=True)
class Row:
    """Errors of keys ("k") and values ("v") of both ways, relative to the hypernetwork's change."""

    style: str
    rank: int
    plain: dict[str, float]
    fitted: dict[str, float]


def compare_fits(ranks: Sequence[int], images: int = 10, steps: int = 8) -> Iterator[Row]:
    base = open_base(pipeline_folder())
    prompts = tuple((pipeline_folder() / "prompts.txt").read_text(encoding="utf-8").splitlines())
    for style, path in hypernetwork_paths().items():
        chain = Chain([hnloader.Application(hnloader.load(path))], base.sites)
        statistics = sample(base, chain, Sampling(prompts, images, steps), lambda *_: None)
        errors = {(rank, way, side): Error() for rank in ranks for way in ("plain", "fitted") for side in SIDES}
        for site in base.sites:
            layer = statistics.of(site)
            for side in SIDES:
                weight = base.weight(site, "to_k" if side == "k" else "to_v").double()
                matrix = fit_context_map(layer, side, with_bias=False).matrix
                for way in ("plain", "fitted"):
                    ranked = rank_directions(weight, matrix, layer, side, plain=way == "plain")
                    for rank in ranks:
                        delta = ranked.up[:, :rank] @ ranked.down[:rank]
                        errors[rank, way, side] += measure(weight, layer, side, delta)
        for rank in ranks:
            plain, fitted = (
                {str(side): errors[rank, way, side].of_change for side in SIDES} for way in ("plain", "fitted")
            )
            yield Row(style, rank, plain, fitted)


def main() -> None:
    print(f"{'':10}{'rank':>5}{'keys: plain SVD':>18}{'fitted':>9}{'values: plain SVD':>20}{'fitted':>9}")
    for row in compare_fits(ranks=(1, 2, 4, 8, 16, 32)):
        numbers = [row.plain["k"], row.fitted["k"], row.plain["v"], row.fitted["v"]]
        shown = [f"{100 * number:.1f} %" for number in numbers]
        print(f"{row.style:10}{row.rank:>5}{shown[0]:>18}{shown[1]:>9}{shown[2]:>20}{shown[3]:>9}")


if __name__ == "__main__":
    main()
