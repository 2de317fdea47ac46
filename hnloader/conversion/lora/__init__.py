"""Hypernetworks as LoRA and LyCORIS files, which programs read that know no hypernetworks.

At an attention layer with the key weight W, a hypernetwork that adds s (A c + b) to the context c changes the keys by
s W A c + s W b: a change of the weight, and a constant. docs/lora.md has the mathematics, what is exact, and what
programs read the files.

    base.py        the model that a file is made for: its layers and weights, read one by one
    running.py     what runs it
    chain.py       what the hypernetworks do at a layer
    statistics.py  contexts sampled from the model
    fitting.py     the best weights, their ranks and their errors
    converting.py  to_lora, from all of these
    result.py      what it returns
    names.py, writing.py   the file
    compare.py     images side by side
"""

from __future__ import annotations

from hnloader.conversion.lora.converting import to_lora
from hnloader.conversion.lora.result import Errors, LoraExport

__all__ = ["Errors", "LoraExport", "to_lora"]
