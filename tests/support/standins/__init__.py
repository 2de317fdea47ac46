"""Stand-ins for AUTOMATIC1111's webui 1.10, Forge and its forks, so that the extension is tested without them.

They keep the hosts' promises to extensions and nothing more, and return noise as images:

- `modules/` is imported as `modules`: scripts and their loading, callbacks, extra networks, options, processing with
  batches, hires pass and refiner, infotext, and the built-in hypernetworks.
- `unets.py` has small UNets in the layout of both hosts.
- `modules_forge/`, `backend/` and `ldm_patched/` are those of Forge and its forks; `webui.FAMILIES` has what differs.
- `webui.py` has `Webui`, which starts a host in a folder, reloads its UI, switches checkpoints and generates images.

Details of the hosts that are easily forgotten:

- `deactivate` is called only if the first prompt has a tag of any kind, and never after an error.
- Each reload empties the registry of extra networks, after it loaded the scripts.
- Errors in callbacks are reported and swallowed (`modules.errors.reports`). An interruption is a `BaseException`.
- A checkpoint is a new model (the default here), is loaded into the modules of the previous one, which keep their hooks
  (`settings.into_same_modules`), or returns from memory without `on_model_loaded` (`settings.keep`).
- The refiner swaps the model during a job without calling `activate` again.
- Forge leaves the roots of all extensions on `sys.path`.
"""
