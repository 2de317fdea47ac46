"""Export hypernetworks as LoRA and LyCORIS files, for programs that do not read hypernetworks.

At an attention layer with the key weight W, a hypernetwork that adds s (A c + b) to the context c changes the keys by
s W A c + s W b: a change of the weight, and a constant. docs/lora.md explains the mathematics, when an export is exact,
and which programs read the files.

    lora_options.py     LoraOptions, the settings
    base_model.py       the model that a file is made for; unet_weights.py reads it, unet_loading.py builds its UNet
    model_runner.py     runs the model
    lora_chain.py       the effect of the hypernetworks on a layer
    context_samples.py  contexts sampled from the model
    fitting.py          the best weights, their ranks and errors
    lora_file.py        names, metadata, reading and writing; layer_names.py translates names of layers
    export.py           export_lora, from all of these; export_result.py is its result
    image_grid.py       images for comparison
    bulk_export.py      many files
"""

from hnloader.conversion.lora.base_model import BaseModel, open_base
from hnloader.conversion.lora.export import export_lora
from hnloader.conversion.lora.export_result import Errors, LoraExport
from hnloader.conversion.lora.lora_options import LoraOptions

__all__ = ["BaseModel", "Errors", "LoraExport", "LoraOptions", "export_lora", "open_base"]
