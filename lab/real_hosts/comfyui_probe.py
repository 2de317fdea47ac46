"""A node pack for the checks of ComfyUI: a tiny model, noise, text, the formula in another way, and checksums."""

from __future__ import annotations

import hashlib

import comfy.controlnet
import comfy.model_patcher
import comfy.ops
import comfy.supported_models
import folder_paths
import torch

TINY = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": (1, 2),
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "use_spatial_transformer": True,
    "legacy": False,
    "num_heads": 4,
    "num_head_channels": -1,
    "use_linear_in_transformer": False,
    "context_dim": 64,
    "adm_in_channels": None,
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TinyModel:
    """A UNet with the widths 32 and 64, which the golden files have."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "make", "probe"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"dtype": (list(DTYPES),), "text": ("INT", {"default": 64})}}

    def make(self, dtype, text):
        config = comfy.supported_models.SD15({**TINY, "context_dim": text})
        config.set_inference_dtype(DTYPES[dtype], None)
        config.unet_config["dtype"] = DTYPES[dtype]
        base = config.get_model({}, "")
        random = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, weight in base.diffusion_model.named_parameters():
                scale = 0.02 if weight.ndim == 1 else (0.5 / weight[0].numel()) ** 0.5
                values = scale * torch.randn(weight.shape, generator=random)
                weight.copy_(values + (1 if weight.ndim == 1 and name.endswith("weight") else 0))
        base.eval().requires_grad_(False)
        cpu = torch.device("cpu")
        return (comfy.model_patcher.ModelPatcher(base, load_device=cpu, offload_device=cpu),)


class Text:
    """A random conditioning."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "make", "probe"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"width": ("INT",), "seed": ("INT",), "tokens": ("INT", {"default": 77})}}

    def make(self, width, seed, tokens):
        random = torch.Generator().manual_seed(seed)
        text = torch.randn(1, tokens, width, generator=random)
        pooled = torch.randn(1, 1280, generator=random)
        return ([[text, {"pooled_output": pooled}]],)


def _by_formula(projection, side, chain):
    """Return a forward of a projection that first adds the residuals of hypernetworks."""

    def forward(context):
        for hypernetwork, strength in chain:
            width = str(context.shape[-1])
            if width in hypernetwork.sides:
                with torch.inference_mode():
                    residual = hypernetwork.sides[width][side].float().residual(context.float())
                context = (context.float() + strength * residual).to(context.dtype)
        return type(projection).forward(projection, context)

    return forward


class Formula:
    """Apply `file=strength, file=strength` by the formula: it replaces the forward of each projection."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "apply", "probe"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",), "files": ("STRING",), "only": ("STRING", {"default": ""})}}

    @classmethod
    def IS_CHANGED(cls, **inputs):  # noqa: N802
        return float("nan")

    def apply(self, model, files, only):
        import hnloader

        chain = []
        with torch.inference_mode(False):
            for each in files.split(","):
                name, _, strength = each.strip().rpartition("=")
                chain.append((hnloader.load(folder_paths.get_full_path("hypernetworks", name)), float(strength)))
        clone = model.clone()
        for name, module in model.model.named_modules():
            if name.endswith((".attn1", ".attn2")) and name.startswith("diffusion_model") and only in name:
                for side in "kv":
                    forward = _by_formula(getattr(module, f"to_{side}"), side, chain)
                    clone.add_object_patch(f"{name}.to_{side}.forward", forward)
        return (clone,)


class Adapter:
    """Replace cross-attention as IPAdapter does: attention to further tokens beside the text."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL",), "apply", "probe"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",)}}

    def apply(self, model):
        from comfy.ldm.modules.attention import optimized_attention

        def replaced(q, k, v, options):
            random = torch.Generator().manual_seed(q.shape[-1])
            extra = torch.randn(1, 4, q.shape[-1], generator=random).to(q).expand(q.shape[0], -1, -1)
            heads = options["n_heads"]
            return optimized_attention(q, k, v, heads) + 0.5 * optimized_attention(q, extra, extra * 0.3, heads)

        clone = model.clone()
        for number in range(12):
            for section in ("input", "output", "middle"):
                clone.set_model_attn2_replace(replaced, section, number)
        return (clone,)


class _Control(comfy.controlnet.ControlBase):
    """A ControlNet that returns a constant for the middle block."""

    def get_control(self, x_noisy, t, cond, batched_number, transformer_options):
        return {"input": [], "middle": [torch.full_like(x_noisy[:, :1], 0.1).mean()], "output": []}

    def copy(self):
        return self

    def get_models(self):
        return []


class Control:
    """Set a ControlNet on a conditioning."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "apply", "probe"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def apply(self, conditioning):
        return ([[text, {**more, "control": _Control()}] for text, more in conditioning],)


class Clones:
    """Return a model after many copies, and what they cost."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("MODEL", "STRING"), "make", "probe"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",), "count": ("INT",)}}

    def make(self, model, count):
        before = _tensor_bytes()
        clones = [model]
        for _ in range(count):
            clones.append(clones[-1].clone())
        grown = _tensor_bytes() - before
        return {"ui": {"text": [str(grown)]}, "result": (clones[-1], str(grown))}


class Checksum:
    """Return a checksum of all weights of a model, and the tensors in memory."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("STRING",), "make", "probe"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"model": ("MODEL",)}}

    @classmethod
    def IS_CHANGED(cls, **inputs):  # noqa: N802
        return float("nan")

    def make(self, model):
        digest = hashlib.sha256()
        for name, value in sorted(model.model.state_dict().items()):
            digest.update(name.encode() + value.contiguous().view(torch.uint8).numpy().tobytes())
        for name, module in model.model.named_modules():
            hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
            digest.update(f"{name} {type(module).__name__} {hooks}\n".encode())
        return {"ui": {"text": [digest.hexdigest()]}, "result": (digest.hexdigest(),)}


def _tensor_bytes():
    import gc

    gc.collect()
    storages = {}
    for each in gc.get_objects():
        try:
            if isinstance(each, torch.Tensor) and each.layout == torch.strided:
                storages[each.untyped_storage().data_ptr()] = each.untyped_storage().nbytes()
        except (RuntimeError, ReferenceError, NotImplementedError):
            continue
    return sum(storages.values())


NODE_CLASS_MAPPINGS = {
    f"Probe{each.__name__}": each for each in (TinyModel, Text, Formula, Adapter, Control, Clones, Checksum)
}
