"""Export hypernetworks as LoRA and LyCORIS files, for programs that do not read hypernetworks.

A hypernetwork adds s (A c + b) to the context c of an attention layer. With the key weight W, this changes the keys by
s W A c + s W b: a change of the weight, and a constant. docs/lora.md explains the mathematics, when an export is exact,
and which programs read the files.

`export` puts the steps together: open the model (`base_model`), sample contexts with the hypernetworks applied
(`context_samples`), fit weights (`fitting`), and write the file (`lora_file`).
"""

from hnloader.conversion.lora.base_model import BaseModel, open_base
from hnloader.conversion.lora.export import export_lora
from hnloader.conversion.lora.export_result import Errors, LoraExport
from hnloader.conversion.lora.lora_options import LoraOptions

__all__ = ["BaseModel", "Errors", "LoraExport", "LoraOptions", "export_lora", "open_base"]
