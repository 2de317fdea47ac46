"""List what the files of a folder hold, the bad ones included: `python inspect_files.py FOLDER`."""

import sys
from pathlib import Path

import hnloader
from hnloader.demo import hypernetwork_paths

folder = Path(sys.argv[1]) if len(sys.argv) > 1 else hypernetwork_paths()["outline"].parent

for path in sorted(folder.rglob("*.pt")):
    try:
        info = hnloader.inspect(path)  # reads the header only, and runs nothing in the file
    except hnloader.HypernetworkError as error:
        print(f"{path.name}: {error}")
        continue
    models = ", ".join(info.families) or "no known model"
    print(f"{path.name}: {info.architecture}; widths {info.widths}; fits {models}; {info.step} steps")
