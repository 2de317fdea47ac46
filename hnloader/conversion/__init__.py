"""Convert hypernetwork files: to safetensors, to the `.pt` of the webuis, and several to one.

`lora` exports them as LoRA and LyCORIS files.
"""

from hnloader.conversion.single import Converted, convert
from hnloader.conversion.verification import verify

__all__ = ["Converted", "convert", "verify"]
