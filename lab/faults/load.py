"""Test large libraries and many repetitions: 10,000 files, and actions repeated 1,000 times.

The checks use counts: opened files, hooks, objects, bytes held by Python. CPU time is only printed.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

import hnloader
from hnloader.attention import attach
from hnloader.attention.attach import attachments
from hnloader.library import Library
from hnloader.ui.catalog import Catalog
from lab.faults._children import Ending
from lab.faults._growth import without_growth
from lab.faults._subjects import hypernetwork, same
from lab.faults._trials import Count, fresh

MOST_PER_NAME, MOST_PER_ENTRY = 6_000, 20_000  # bytes of memory for each file of a library


def library(place: Path, rounds: int, seed: int) -> Count:
    """List, search and read a library of `rounds` x 100 files, and list it again."""
    count = Count()
    files = rounds * 100
    folder = _made_library(fresh(place), files)
    cache = folder.parent / "cache"
    with _measured(count, f"listing {files:,} files") as listing:
        names = Library([folder])
        found = names.files()
    _expect(count, len(found) == files, f"listed {len(found):,} files, expected {files:,}")
    _expect(count, listing.opened == 0, f"listing opened {listing.opened:,} files")
    _expect(count, listing.held < MOST_PER_NAME * files, f"{listing.held / files:,.0f} bytes held for each file")
    with _measured(count, "finding 1,000 of them by name") as finding:
        for index in range(0, files, max(files // 1000, 1)):
            path = names.find(f"style {index}")
            _expect(count, path.stem == f"style {index}", f"found {path} for style {index}")
    _expect(count, finding.opened == 0, f"finding by name opened {finding.opened:,} files")
    catalog = Catalog(lambda: [folder], cache)
    with _measured(count, "the page's list, before reading any file") as listing:
        catalog.entries()
        catalog.search("style 77")
    # The one file is the index, which does not exist yet.
    _expect(count, listing.opened <= 1, f"the page's list opened {listing.opened:,} files")
    with _measured(count, "reading all of them") as looking:
        for _ in catalog.inspect_all():
            pass
    counts = catalog.counts()
    _expect(count, (counts.inspected, counts.bad) == (files, files // 100), f"{counts} after reading all")
    _expect(count, looking.held < MOST_PER_ENTRY * files, f"{looking.held / files:,.0f} bytes held for each file")
    with _measured(count, "searching ten times, in all orders"):
        for query in ("style 77", "relu", "missing", "übung", "2", "", "sd 1", "style", "linear", "notes"):
            for sort in ("name", "newest", "largest", "most steps", "model family"):
                catalog.search(query, sort)
    with _measured(count, "listing again without changes") as again:
        catalog.refresh()
        for _ in catalog.inspect_all():
            pass
    _expect(count, again.opened <= 4 * (files // 100), f"{again.opened:,} files were opened although none changed")
    _later_starts(count, folder, cache, files)
    return count


def _later_starts(count: Count, folder: Path, cache: Path, files: int) -> None:
    """Start again with the index of an earlier run, complete and damaged."""
    bad = files // 100

    def started() -> tuple[Measured, object]:
        catalog = Catalog(lambda: [folder], cache)
        with _measured(count, what) as starting:
            for _ in catalog.inspect_all():
                pass
        counts = catalog.counts()
        _expect(count, (counts.files, counts.inspected, counts.bad) == (files, files, bad), f"{counts}: {what}")
        return starting, catalog.entries()

    what = "the next start, with the index"
    starting, known = started()
    _expect(count, starting.opened <= 4 * bad + 1, f"{starting.opened:,} files were opened although none changed")
    (index,) = cache.iterdir()
    count.notes.append(f"the index: {index.stat().st_size / 2**20:.1f} MiB")
    os.truncate(index, index.stat().st_size // 2)
    what = "the next start, with a truncated index"
    starting, again = started()
    _expect(count, again == known, "the rebuilt index differs")
    _expect(count, starting.opened >= files, "a truncated index was used")


def _made_library(folder: Path, files: int) -> Path:
    """Write files into subfolders; one of 100 is truncated."""
    sample = folder / "sample.pt"
    hnloader.save(hypernetwork(0, 4), sample)
    data = sample.read_bytes()
    sample.unlink()
    for index in range(files):
        below = folder / "library" / f"{index % 50:02}"
        below.mkdir(parents=True, exist_ok=True)
        (below / f"style {index}.pt").write_bytes(data if index % 100 else data[:200])
    return folder / "library"


def cycles(place: Path, rounds: int, seed: int) -> Count:
    """Attach, call and detach `rounds` x 10 times without leaking hooks or objects."""
    from tests.support.small_models import WIDTHS, assert_untouched, fingerprint, make_hypernetwork, make_unet
    from tests.support.small_models import run as call

    unet = make_unet("sd1")
    styles = [make_hypernetwork(WIDTHS["sd1"], seed=n, activation=a) for n, a in enumerate(("relu", None))]
    before, plain = fingerprint(unet), call(unet)

    def once(index: int) -> None:
        attached = attach(unet, styles[: 1 + index % 2], 0.5 + index % 3, end=(1.0, 0.5)[index % 2])
        if index % 10 == 0:
            call(unet)
        attached.set_strength(0.3)
        attached.detach()

    count = without_growth(once, rounds * 10, lambda: _hooks(unet))
    count.add(Ending("done"), lambda: assert_untouched(unet, before))
    _expect(count, not attachments(unet) and torch.equal(call(unet), plain), "the model changed")
    return count


def reloads(place: Path, rounds: int, seed: int) -> Count:
    """Load, inspect and convert a file `rounds` x 10 times without leaking objects or open files."""
    folder = fresh(place)
    hnloader.save(hypernetwork(1, 16), folder / "style.pt")
    expected = hypernetwork(1, 16)
    wrong: list[str] = []

    def once(index: int) -> None:
        if not same(hnloader.load(folder / "style.pt"), expected):
            wrong.append(f"round {index} loaded different weights")
        hnloader.inspect(folder / "style.pt")
        if index % 10 == 0:
            hnloader.convert(folder / "style.pt", folder / "style.safetensors")

    def handles() -> int:
        place = Path("/proc/self/fd")
        return len(list(place.iterdir())) if place.is_dir() else 0

    count = without_growth(once, rounds * 10, handles)
    count.wrong += wrong
    return count


def webui(place: Path, rounds: int, seed: int) -> Count:
    """Reload the UI of the stand-in webui `rounds` x 10 times without leaking modules, hooks or objects."""
    from tests.support.standins.unets import ALL_WIDTHS
    from tests.support.standins.webui import running
    from tests.support.tiny_model import save_hypernetwork

    with running(fresh(place)) as host:
        host.install()
        host.hypernetworks.mkdir(parents=True, exist_ok=True)
        save_hypernetwork(host.hypernetworks / "ink.pt", ALL_WIDTHS, seed=1)
        host.start()
        plain = [str(image) for image in host.generate("a cat").images]

        def once(index: int) -> None:
            host.reload()
            if index % 100 == 0:
                host.generate("a cat <hypernet:ink:1>")

        count = without_growth(once, rounds * 10, lambda: _hooks(host.unet) + len(sys.modules) + len(sys.path))
        same = [str(image) for image in host.generate("a cat").images] == plain
        _expect(count, same, "the model changed")
    return count


SCENARIOS: dict[str, Callable[[Path, int, int], Count]] = {
    "library": library,
    "attach and detach": cycles,
    "load and convert": reloads,
    "reload the webui": webui,
}


# -- measuring


class Measured:
    """The cost of an action.

    Attributes:
        opened: Number of opened files.
        held: Bytes that Python holds in addition.
    """

    opened = 0
    held = 0


_open_now: Measured | None = None
_hooked = False


def _note_open(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _open_now is not None and str(arguments[0]).endswith((".pt", ".safetensors", ".json")):
        _open_now.opened += 1


@contextmanager
def _measured(count: Count, what: str) -> Iterator[Measured]:
    global _open_now, _hooked
    if not _hooked:
        sys.addaudithook(_note_open)
        _hooked = True
    result = Measured()
    gc.collect()
    tracemalloc.start()
    count.endings["done"] += 1
    _open_now = result
    began = time.process_time()
    try:
        yield result
    finally:
        seconds = time.process_time() - began
        _open_now = None
        gc.collect()
        result.held = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    count.notes.append(f"{what}: {seconds:.2f} s, {result.opened:,} files opened, {result.held / 2**20:.1f} MiB held")


def _hooks(model: nn.Module) -> int:
    """Count the hooks and the replaced forwards of all modules."""
    names = [name for name, value in vars(nn.Module()).items() if "hook" in name and isinstance(value, dict)]
    modules = list(model.modules())
    return sum(len(getattr(m, name)) for m in modules for name in names) + sum("forward" in vars(m) for m in modules)


def _expect(count: Count, holds: bool, otherwise: str) -> None:
    if not holds:
        count.wrong.append(otherwise)
