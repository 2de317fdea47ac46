"""Convert a folder to safetensors, verified: `python convert_folder.py OLD NEW`."""

import sys
from pathlib import Path

import hnloader
from hnloader.demo import hypernetwork_paths

old = Path(sys.argv[1]) if len(sys.argv) > 1 else hypernetwork_paths()["outline"].parent
new = Path(sys.argv[2]) if len(sys.argv) > 2 else Path("converted")

new.mkdir(parents=True, exist_ok=True)
for source in sorted(old.glob("*.pt")):
    try:
        # Writes the file, reads it back and compares it with the source before the file gets its name.
        result = hnloader.convert(source, new / f"{source.stem}.safetensors")
    except hnloader.HypernetworkError as error:
        print(f"{source.name}: {error}")
        continue
    print(f"{source.name} -> {result.target}")
