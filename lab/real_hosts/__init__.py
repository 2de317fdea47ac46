"""The extension in a real webui: `make hosts WEBUIS=folders CHECKPOINT=file`."""
