"""Start a real webui with and without the extension, run the checks, and print a table.

This requires a working checkout of AUTOMATIC1111, Forge or a fork of them, its Python, and any checkpoint of Stable
Diffusion 1, which can have random weights. Models, extensions and settings are in a temporary folder; the checkout
stays unchanged. The exit status is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path

import hnloader
from tests.support.checking import outcome

from . import checks, files, neighbors, page, variants
from .host_process import HostError
from .server import Checkout, Server, make_data

MANY, BROKEN = 2000, 50
# Additional CPU seconds that a start may take with MANY files.
LATER = 3.0


@dataclass(frozen=True)
class Given:
    """Values of the command line.

    Attributes:
        checkpoints: Files of Stable Diffusion 1 by their names in the webui: `first` and `second`.
        sdxl: Checkpoints of Stable Diffusion XL.
        also: More hypernetworks.
        extensions: Folders of other extensions to install.
        control: A ControlNet for the extension of AUTOMATIC1111 or Forge.
        detector: A model for the extension ADetailer.
        arguments: More arguments of the webui.
        only: Parts of the names of checks to run.
        skip: Parts of the names of checks to skip.
    """

    checkpoints: dict[str, Path]
    sdxl: list[Path]
    also: list[Path]
    extensions: list[Path]
    control: Path | None
    detector: Path | None
    arguments: list[str]
    only: list[str]
    skip: list[str]

    def for_webui(self, *, is_forge: bool) -> Given:
        """Return these values with the checkpoint of Stable Diffusion XL that a webui can load, as `sdxl`."""
        # Only AUTOMATIC1111 reads a configuration, and it needs one for fewer blocks than those of SDXL.
        fitting = [file for file in self.sdxl if file.with_suffix(".yaml").exists() != is_forge] or self.sdxl
        return replace(self, checkpoints={**self.checkpoints, "sdxl": fitting[0]}) if fitting else self

    def wanted(self, name: str) -> bool:
        """Return whether to run a check."""
        return any(part in name for part in self.only) and not any(part in name for part in self.skip)


def main() -> int:
    """Run all checks on each webui."""
    parser = argparse.ArgumentParser(prog="python -m lab.real_hosts", description=__doc__)
    parser.add_argument(
        "webuis",
        nargs="+",
        metavar="FOLDER[=PYTHON]",
        help="a webui's folder, and its Python; default: venv/bin/python in the folder",
    )
    parser.add_argument("--checkpoint", type=_existing, required=True, help="a checkpoint of Stable Diffusion 1")
    parser.add_argument(
        "--sdxl",
        type=_existing,
        action="append",
        default=[],
        help="also check this checkpoint of Stable Diffusion XL; of two, AUTOMATIC1111 takes the one with a .yaml file",
    )
    parser.add_argument(
        "--also",
        type=_existing,
        action="append",
        default=[],
        help="also apply this .pt file, which has only layers and relu",
    )
    parser.add_argument(
        "--extension", type=_existing, action="append", default=[], help="also install the extension in this folder"
    )
    parser.add_argument("--control", type=_existing, help="also check this ControlNet of Stable Diffusion 1")
    parser.add_argument("--detector", type=_existing, help="a model that the extension ADetailer is checked with")
    parser.add_argument("--only", default="", help="run checks whose names contain one of these: a,b,c")
    parser.add_argument("--skip", default="", help="skip checks whose names contain one of these: a,b,c")
    parser.add_argument("--keep", type=Path, help="use this new folder, and keep it")
    parser.epilog = "Arguments after -- are passed to the webui."
    own, passed = _split(sys.argv[1:])
    chosen = parser.parse_args(own)
    checkpoints = {"first": chosen.checkpoint, "second": chosen.checkpoint}
    only, skip = chosen.only.split(","), [part for part in chosen.skip.split(",") if part]
    given = Given(
        checkpoints, chosen.sdxl, chosen.also, chosen.extension, chosen.control, chosen.detector, passed, only, skip
    )
    return max([check_webui(each, given, chosen.keep) for each in chosen.webuis])


def _existing(text: str) -> Path:
    path = Path(text)
    if not path.exists():
        raise argparse.ArgumentTypeError(f"{text}: Nothing has this path.")
    return path


def check_webui(webui: str, given: Given, keep: Path | None) -> int:
    """Print the outcome of each check of `FOLDER[=PYTHON]`; return 1 if one failed, else 0."""
    name, _, python = webui.partition("=")
    checkout = Path(name).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if keep is None else keep / checkout.name
        host = Checkout(checkout, Path(python or checkout / "venv" / "bin" / "python").absolute())
        given = given.for_webui(is_forge=host.is_forge)
        results = []
        try:
            results.extend(run(host, given, folder))
        except (AssertionError, HostError, HTTPException, OSError) as error:
            print(f"FAILED {checkout.name}: The run ended early. {type(error).__name__}: {error}")
            results.append(False)
    failed = results.count(False)
    print(f"{checkout.name}: {len(results)} checks, {failed} failed", flush=True)
    return 1 if failed else 0


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments before and after `--`, which argparse handles only next to other positional ones."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:end], arguments[end + 1 :]


def run(checkout: Checkout, given: Given, folder: Path) -> Iterable[bool]:
    """Yield the outcome of each check."""
    # Forge and its forks have ControlNet themselves.
    others = [each for each in given.extensions if not (checkout.is_forge and each.name == "sd-webui-controlnet")]
    without = make_data(folder / "without", given.checkpoints, others, extension=False)
    data = make_data(folder / "with", given.checkpoints, others, extension=True)
    for each in (without, data):
        fill(each / "models", given)
    seen = checks.Seen(data)
    with Server(checkout, without, given.arguments) as host:
        yield from before_the_extension(host, given, seen)
    if checks.LORA in seen.lacks:  # ersatzForge then shows no cards at all if there is a LoRA
        (data / "models" / "Lora" / files.LORA).unlink()
    if given.wanted("install.py"):
        yield outcome("install.py", lambda: installs(checkout, data))
    yield from with_the_extension(Server(checkout, data, given.arguments), given, seen, neighbors_too=bool(others))
    yield from other_starts(checkout, data, given, seen)


def before_the_extension(host: Server, given: Given, seen: checks.Seen) -> Iterable[bool]:
    """See what the webui does without the extension."""
    seen.is_forge = host.is_forge
    print(f"{host.name} in {host.checkout}: started without the extension in {host.seconds:.0f} s", flush=True)
    seen.plain = host.image(checks.PROMPT)
    assert seen.plain == host.image(checks.PROMPT), "this host generates two different images from the same seed"
    if given.wanted("like the built-in"):
        for file in ("ink", *(each.stem for each in given.also)):
            image = host.image(f"{checks.PROMPT}<hypernet:{file}:0.7>")
            if image != seen.plain or not host.is_forge:
                seen.built_in[file] = image
        host.image(checks.PROMPT)
        if given.control is not None and not host.is_forge:
            seen.controlled = host.image(f"{checks.PROMPT}<hypernet:ink:0.7>", **checks.controlled(host))
    checks.look_at(host, seen)
    seen.state = host.state()
    if any(map(given.wanted, page.PAGE)):
        yield outcome("page unchanged", lambda: page.look_at(host, seen))


def with_the_extension(server: Server, given: Given, seen: checks.Seen, *, neighbors_too: bool) -> Iterable[bool]:
    """Run the checks that share one start of the webui."""
    running = {
        **checks.RUNNING,
        **({"ControlNet": checks.control_net} if given.control is not None else {}),
        **(neighbors.CHECKS if neighbors_too else {}),
        **variants.for_files(given.also, given.checkpoints),
        **checks.AT_THE_END,
        **variants.LAST,
    }
    in_page = any(map(given.wanted, page.PAGE))
    if not in_page and not any(map(given.wanted, running)):
        return
    with server as host:
        print(f"started with the extension in {host.seconds:.0f} s", flush=True)
        for name, check in running.items():
            if given.wanted(name):
                yield outcome(name, lambda check=check: check(host, seen))
        if in_page:
            yield from in_browser(host, seen, given.wanted)


def other_starts(checkout: Checkout, data: Path, given: Given, seen: checks.Seen) -> Iterable[bool]:
    """Run the checks for which the webui starts with other arguments or files."""
    for name, (more, check) in variants.STARTS[seen.is_forge].items():
        if given.wanted(name):
            start = Server(checkout, data, [*more, *given.arguments])
            yield outcome(name, lambda start=start, check=check: started(start, check, seen))
    if given.wanted("many files"):
        yield outcome("many files", lambda: many(checkout, data, given.arguments))
    if given.wanted("API alone"):
        yield outcome("API alone", lambda: api_alone(checkout, data, given.arguments, seen))


def in_browser(host: Server, seen: checks.Seen, wanted: Callable[[str], bool]) -> Iterable[bool]:
    """Yield the outcomes of the checks of the page, all in one browser."""
    with ExitStack() as stack:
        users: list[page.User] = []

        def opens() -> str:
            users.append(stack.enter_context(page.browser(host, seen)))
            return "in Chromium"

        yield outcome("page: opens", opens)
        for name, check in page.PAGE.items():
            if users and wanted(name):
                yield outcome(name, lambda check=check: page.tried(users[0], check))


def fill(models: Path, given: Given) -> None:
    """Write the hypernetworks and the LoRA that the checks name, and add the user's own files."""
    folder = models / "hypernetworks"
    ink = files.save_hypernetwork(folder / "ink.pt", seed=1)
    files.save_hypernetwork(folder / "wash.pt", seed=2)
    files.save_hypernetwork(folder / "flat.pt", seed=3, layers=1, activation="linear")
    files.save_hypernetwork(folder / "wide.pt", seed=4, widths=files.WIDTHS_XL)
    hnloader.save(hnloader.load(ink), folder / "dry.safetensors")
    for file in given.also:
        shutil.copy(file, folder / file.name)
    (folder / "torn.pt").write_bytes(ink.read_bytes()[:100_000])
    files.save_lora(models / "Lora" / files.LORA)
    if given.control is not None:
        link(models / "ControlNet" / "edges.safetensors", given.control)
    if given.detector is not None:
        link(models / "adetailer" / neighbors.DETECTOR, given.detector)


def link(path: Path, file: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(file.resolve())


def installs(checkout: Checkout, data: Path) -> str:
    """Run it as the host does at every launch, with nothing missing."""
    begun = time.monotonic()
    done = subprocess.run(
        [str(checkout.python), str(data / "extensions" / "hnloader" / "install.py")],
        env={"PYTHONPATH": str(checkout.folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and not done.stdout + done.stderr, done.stdout + done.stderr
    return f"nothing to do, {time.monotonic() - begun:.2f} s"


def started(start: Server, check: checks.Check, seen: checks.Seen) -> str:
    """Run a check after a start with other arguments."""
    with start as host:
        return check(host, seen)


def many(checkout: Checkout, data: Path, arguments: list[str]) -> str:
    """Check that a large collection is listed and does not slow the start. The quicker of two starts counts."""

    def start() -> tuple[float, float, int]:
        """Return CPU seconds, which depend little on other programs, seconds by the clock, and the listed files."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with Server(checkout, data, arguments) as host:
            listed = len(host.get("/sdapi/v1/hypernetworks"))
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, host.seconds, listed

    few, few_clock, _ = min(start(), start())
    files.save_many(data / "models" / "hypernetworks" / "many", MANY, BROKEN)
    more, more_clock, listed = min(start(), start())
    found = (
        f"start and list with {MANY} more files: {more:.1f} CPU s, {few:.1f} without; "
        f"start by the clock {more_clock:.1f} s, {few_clock:.1f} s without"
    )
    assert listed >= MANY, f"{listed} listed"
    assert more < few + LATER, found
    return found


def api_alone(checkout: Checkout, data: Path, arguments: list[str], seen: checks.Seen) -> str:
    """Check the API of a start without the page (--nowebui)."""
    with Server(checkout, data, ["--nowebui", *arguments]) as host:
        rows = {"Hypernetworks": {"args": ["<hypernet:ink:0.7>"]}}
        tagged = host.image(f"{checks.PROMPT}<hypernet:ink:0.7>")
        checks.expect_other(tagged, seen.plain)
        assert host.image(checks.PROMPT, alwayson_scripts=rows) == tagged, "rows and tag give different images"
        return checks.expect_clean(host, seen)


if __name__ == "__main__":
    sys.exit(main())
