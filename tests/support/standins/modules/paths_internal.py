"""Folders of the stand-in host; `Webui` sets them."""

script_path = data_path = models_path = extensions_dir = ""
