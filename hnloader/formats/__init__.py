"""File formats: one module each, found by `registry`, and what their modules share.

To add a format, add a module with a `FORMAT`; `registry.FileFormat` names its parts. `pt`, `safetensors` and `hns` are
examples. Nothing else has to know of it.
"""
