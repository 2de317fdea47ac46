"""Open every file of a folder in every way, in a separate process, and measure the cost of each.

    python -m tests.support.opening FOLDER SOUND

prints one JSON object: {file: {reader: {"said", "seconds", "bytes"}}}, and under "SOUND" the same for a sound file that
is opened at the end. "said" is "accepted", or the names of the error's classes; "seconds" is CPU time of the whole
process, which does not depend on what else the machine does; "bytes" is by how much the process's resident memory was
larger at its peak than before.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

import hnloader
from hnloader.conversion import convert
from hnloader.scanning import scan
from hnloader.ui.catalog import Catalog

Said = list[str] | str
# Above what the interpreter holds with everything imported, so that a file cannot take the machine's memory.
HEADROOM = 2 << 30
READERS = ("load", "inspect", "scan", "convert", "catalog", "API inspect", "API convert")


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def status(name: str) -> int:
    """A size in /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def measured(read: Callable[[], Said]) -> dict[str, Any]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present again
    before, began = status("VmRSS"), time.process_time()
    said = read()
    return {"said": said, "seconds": time.process_time() - began, "bytes": status("VmHWM") - before}


def outcome(read: Callable[[], object]) -> Said:
    try:
        read()
    except Exception as error:
        assert str(error)
        return [kind.__name__ for kind in type(error).__mro__]
    return "accepted"


@contextmanager
def api(folder: Path, place: Path) -> Iterator[TestClient]:
    """A client of the webui's API, whose library is the folder."""
    from tests.support.standins.webui import running

    with running(place) as webui:
        webui.hypernetworks.rmdir()
        webui.hypernetworks.symlink_to(folder)
        webui.install()
        webui.start()
        app = FastAPI()
        webui.part("script_callbacks").run("app_started", None, app)
        yield TestClient(app, base_url="http://127.0.0.1:7860")


class Opener:
    """Opens files in every way."""

    def __init__(self, folder: Path, client: TestClient) -> None:
        self.folder, self.client = folder, client
        self.catalog = Catalog(lambda: [folder])

    def opened(self, path: Path) -> dict[str, dict[str, Any]]:
        result = self.folder / f"result{'.pt' if path.suffix == '.safetensors' else '.safetensors'}"
        read: dict[str, Callable[[], Said]] = {
            "load": lambda: outcome(lambda: hnloader.load(path)),
            "inspect": lambda: outcome(lambda: hnloader.inspect(path)),
            "scan": lambda: "accepted" if scan(path).verdict == "safe" else "refused",
            "convert": lambda: outcome(lambda: convert(path, result)),
            "catalog": lambda: self.shown(path),
            "API inspect": lambda: self.asked("GET", f"inspect?name={path.name}"),
            "API convert": lambda: self.asked("POST", "convert", {"name": path.name, "to": result.suffix[1:]}),
        }
        found = {}
        for reader in READERS:
            found[reader] = measured(read[reader])
            for left in {result, path.with_suffix(result.suffix)} - {path}:
                left.unlink(missing_ok=True)
        return found

    def shown(self, path: Path) -> Said:
        """Other exceptions than the package's go through, and end the process."""
        entry = next(entry for entry in self.catalog.entries() if entry.path == path)
        return "accepted" if self.catalog.inspect(entry).problem is None else "refused"

    def asked(self, method: str, path: str, body: dict[str, str] | None = None) -> Said:
        answer = self.client.request(method, f"/hnloader/v1/{path}", json=body)
        assert str(self.folder) not in answer.text and "hypernetworks/" not in answer.text, answer.text
        refused = answer.status_code == 422 or (answer.status_code == 200 and answer.json().get("problem"))
        if refused:
            return "refused"
        return "accepted" if answer.status_code == 200 else f"status {answer.status_code}"


def main(folder: Path, sound: Path) -> None:
    warnings.simplefilter("ignore")
    hnloader.load(sound)
    with api(folder, sound.parent / "webui") as client:
        convert(sound, sound.with_suffix(".safetensors"))  # all that is imported at its first use
        client.get("/hnloader/v1/hypernetworks")
        limit_memory()
        opener = Opener(folder, client)
        results = {path.name: opener.opened(path) for path in sorted(folder.iterdir())}
        results["SOUND"] = {"load": measured(lambda: outcome(lambda: hnloader.load(sound)))}
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
