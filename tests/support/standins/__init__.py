"""Stand-ins for AUTOMATIC1111's webui 1.10 and for Forge, so that the extension is tested without them.

They honour what the hosts promise to extensions and nothing more, and draw noise instead of images:

- `modules/` is imported as `modules`, as in the hosts: scripts and their loading, callbacks, extra networks, shared
  options, processing with batches, hires pass and refiner, infotext, and the hypernetworks that the hosts bring along.
- `unets.py` has UNets in the layout of both hosts, small enough to run in milliseconds.
- `webui.py` has `Webui`: it starts a host in a folder, reloads its UI, switches checkpoints, and makes images.

What the hosts do that is easily forgotten, and done here too:

- `deactivate` is called only where the first prompt held a tag of any kind, and never after an error.
- The registry of extra networks is emptied at each reload, after the scripts were loaded.
- Errors in callbacks are reported and swallowed (`modules.errors.reports`); an interruption is no `Exception`.
- A checkpoint is loaded into the modules of the one before, which keep their hooks (`settings.into_same_modules`), or
  comes back from memory without `on_model_loaded` (`settings.keep`), or is a new model (the default here).
- The refiner swaps the model in the middle of a job without activating anything anew.
- Forge leaves the roots of all extensions on `sys.path`.
"""
