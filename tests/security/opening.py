"""Opens every file of a folder in every way, in a process of its own with little memory to spare.

    python opening.py FOLDER SOUND

prints one JSON object: {file: {reader: names of the error's classes, or "accepted"}}, and under "SOUND" whether the
process could still load that file afterwards.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import hnloader
from hnloader.conversion import convert
from hnloader.ui.catalogue import Catalogue

# Above what the interpreter holds with torch imported. 200 MiB for reading, the rest is what threads' stacks and
# allocator arenas reserve without using it.
HEADROOM = 700 << 20


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def outcome(read: Callable[[], object]) -> list[str] | str:
    try:
        read()
    except Exception as error:
        assert str(error)
        return [kind.__name__ for kind in type(error).__mro__]
    return "accepted"


def opened(path: Path, catalogue: Catalogue) -> dict[str, list[str] | str]:
    target = path.with_name("result" + (".pt" if path.suffix == ".safetensors" else ".safetensors"))
    entry = next(entry for entry in catalogue.entries() if entry.path == path)
    found = {
        "load": outcome(lambda: hnloader.load(path)),
        "inspect": outcome(lambda: hnloader.inspect(path)),
        "convert": outcome(lambda: convert(path, target)),
    }
    if target.exists():
        found["convert"] = "accepted"
        target.unlink()
    problem = catalogue.look_into(entry).problem  # other exceptions than the package's go through, and end the process
    found["catalogue"] = "accepted" if problem is None else found["inspect"]
    return found


def main(folder: Path, sound: Path) -> None:
    hnloader.load(sound)
    limit_memory()
    catalogue = Catalogue(lambda: [folder])
    results: dict[str, object] = {}
    for path in sorted(folder.iterdir()):
        results[path.name] = opened(path, catalogue)
    results["SOUND"] = outcome(lambda: hnloader.load(sound))
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
