"""The extension in a real webui: `make hosts A1111=folder FORGE=folder CHECKPOINT=file`."""
