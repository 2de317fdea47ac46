"""An extension for real webuis that inspects the model and does what no public route can do.

`server.py` copies it into `extensions/probe/scripts/`. Routes:

- `GET /probe/state`: hooks on the UNet, a checksum of the attention, the owner of `<hypernet:...>`, and more; of
  the last job, the states of the layers in each step.
- `POST /probe/wrap`: apply `.pt` files by the formula `to_k(h_k(context))`, `to_v(h_v(context))`, without hnloader.
- `POST /probe/fail`: the UNet raises in the second call of the next job.
- `POST /probe/reload`: press 'Reload UI'.
- `POST /probe/settings`: register the settings of extensions once more, for those that were late at the start.
- `GET /probe/optimizations`: the titles of AUTOMATIC1111's attention optimizations.
- `POST /probe/nest`: toggle that each image is made again by a job within its job, without scripts, as detailers do.
- `POST /probe/small`: toggle that all jobs have images of 64 x 64.
- `POST /probe/cast`: toggle casting of weights at each call, which AUTOMATIC1111 does with --no-half on a GPU.
"""

from __future__ import annotations

import collections
import copy
import inspect
import zlib

import torch
from fastapi import Body
from modules import devices, extra_networks, processing, script_callbacks, scripts, shared, shared_items

_wrapped = []
_step = [0, 1]
_states = []  # for each step of the last job, the number of projections by state


def unet():
    forge = getattr(shared.sd_model, "forge_objects", None)
    return (forge.unet.model if forge is not None else shared.sd_model.model).diffusion_model


def hooks(module):
    """Count the hooks on a module, without those of this extension, also of its loads before 'Reload UI'."""
    others = [hook for hook in module._forward_hooks.values() if getattr(hook, "__name__", "") != look.__name__]
    return len(module._forward_pre_hooks) + len(others)


def projections():
    for module in unet().modules():
        if hasattr(module, "to_k") and hasattr(module, "to_v"):
            yield module.to_k, 0
            yield module.to_v, 1


def state():
    try:
        model = unet()
    except AttributeError:
        return {"loaded": False}
    checksum = 0
    for projection, _ in projections():
        checksum = zlib.crc32(projection.weight.detach().cpu().contiguous().view(torch.uint8).numpy().data, checksum)
    owner = extra_networks.extra_network_registry.get("hypernet")
    ours = [
        callback.script
        for callbacks in script_callbacks.callback_map.values()
        for callback in callbacks
        if "hnloader_webui" in getattr(callback.callback, "__module__", "")
    ]
    return {
        "loaded": True,
        "hooks": sum(map(hooks, model.modules())),
        "weights": checksum,
        "dtypes": sorted({str(projection.weight.dtype) for projection, _ in projections()}),
        "inference": sorted({projection.weight.is_inference() for projection, _ in projections()}),
        "states": list(_states),
        "owner": type(owner).__module__,
        "built_in": len(getattr(shared, "loaded_hypernetworks", [])),
        "callbacks": len(ours),
        "axes": plot_axes(),
    }


def plot_axes():
    """Return the labels of the plot's axes in txt2img, in order, and its arguments."""
    for data in scripts.scripts_data:
        if data.path.endswith("xyz_grid.py"):
            module = data.module
            plain = [each for each in module.axis_options if type(each) is module.AxisOption or not each.is_img2img]
            names = list(inspect.signature(data.script_class.run).parameters)[2:]
            return {"labels": [each.label for each in plain], "arguments": names}
    return None


def residual(side, context):
    weights = [side[key] for key in side if key.endswith("weight")]
    biases = [side[key] for key in side if key.endswith("bias")]
    hidden = context
    for position, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        hidden = hidden.relu() if position else hidden
        hidden = torch.nn.functional.linear(hidden, weight.to(hidden), bias.to(hidden))
    return hidden


def wrap(files: list = Body(...)):  # noqa: B008 - the webuis' FastAPI requires it
    """`files` are objects with `path`, `strength` and optionally `first`, the first step; [] unwraps."""
    for projection in _wrapped:
        del projection.forward
    _wrapped.clear()
    if not files:
        return {}
    chain = [(torch.load(file["path"], weights_only=True), file["strength"], file.get("first", 0)) for file in files]
    for projection, side in projections():
        projection.forward = wrapped(projection, side, chain)
        _wrapped.append(projection)
    return {"wrapped": len(_wrapped)}


def wrapped(projection, side, chain):
    def forward(context):
        for tree, strength, first in chain:
            if _step[0] >= first and context.shape[-1] in tree:
                context = context + strength * residual(tree[context.shape[-1]][side], context)
        return type(projection).forward(projection, context)  # AUTOMATIC1111 replaces it for casts

    return forward


def fail():
    calls = []
    handle = None

    def raise_at_second(module, args):
        calls.append(1)
        if len(calls) == 2:
            handle.remove()
            raise RuntimeError("Raised by the probe.")

    handle = unet().register_forward_pre_hook(raise_at_second)
    return {}


def reload():
    shared.state.server_command = "restart"
    return {}


def settings():
    script_callbacks.ui_settings_callback()
    return {}


def optimizations():
    return [title for title in shared_items.cross_attention_optimizations() if title != "Automatic"]


def cast():
    original = getattr(devices, "probe_autocast", None)
    if original is not None:
        devices.autocast = original
        del devices.probe_autocast
        return {"cast": False}
    devices.probe_autocast = devices.autocast
    devices.autocast = lambda disable=False: devices.manual_cast(torch.float32)
    return {"cast": True}


def small():
    original = getattr(processing, "probe_process_images", None)
    if original is not None:
        processing.process_images = original
        del processing.probe_process_images
        return {"small": False}
    original = processing.probe_process_images = processing.process_images

    def process_small(job):
        job.width = job.height = 64
        return original(job)

    processing.process_images = process_small
    return {"small": True}


_nests = []


def nest():
    if _nests:
        _nests.clear()
    else:
        _nests.append(True)
    return {}


class InEachJob(scripts.Script):
    def title(self):
        return "Probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def process(self, p, *args):
        torch.manual_seed(0)  # the webuis encode images with noise of this generator; ersatzForge never seeds it

    def postprocess_image(self, p, pp, *args):
        if not _nests or getattr(p, "within_another", False):
            return
        fields = ("sd_model", "seed", "steps", "cfg_scale", "width", "height", "sampler_name", "negative_prompt")
        same = {name: getattr(p, name) for name in fields if hasattr(p, name)}
        inner = processing.StableDiffusionProcessingImg2Img(
            init_images=[pp.image], denoising_strength=0.8, prompt="a lake", do_not_save_samples=True, **same
        )
        inner.within_another = True
        inner.scripts = copy.copy(p.scripts)
        inner.scripts.alwayson_scripts = []
        inner.script_args = ()
        pp.image = processing.process_images(inner).images[0]


def started(demo, app):
    app.add_api_route("/probe/state", state, methods=["GET"])
    app.add_api_route("/probe/optimizations", optimizations, methods=["GET"])
    for call in (wrap, fail, reload, settings, nest, small, cast):
        app.add_api_route(f"/probe/{call.__name__}", call, methods=["POST"])


def denoiser(params):
    _step[:] = params.sampling_step, params.total_sampling_steps
    if params.sampling_step == 0:
        _states.clear()
    last = unet().out
    if look not in last._forward_hooks.values():
        last.register_forward_hook(look)


def look(module, args, output):
    """Note the states that hnloader gives the projections for the time of a call."""
    owners = [getattr(vars(projection).get("forward"), "__self__", None) for projection, _ in projections()]
    states = [getattr(owner, "state", None) for owner in owners]
    _states.append(dict(collections.Counter(state for state in states if isinstance(state, str))))


script_callbacks.on_app_started(started)
script_callbacks.on_cfg_denoiser(denoiser)
