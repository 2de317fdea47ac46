"""Check hypernetworks on models on a GPU. Each check returns a summary or raises."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.hooks import apply_group_offloading
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.utils import counters

import hnloader
from hnloader.attention import attach
from hnloader.demo import hypernetwork_paths, pipeline_folder
from hnloader.network import Architecture, Hypernetwork
from hnloader.pipelines import load_model
from tests.support.builders import relative_error
from tests.support.paths import GOLDENS
from tests.support.small_models import (
    WIDTHS,
    assert_untouched,
    fingerprint,
    make_hypernetwork,
    make_unet,
    moved,
    unet_inputs,
)

SAME = 1e-5
HALF = (torch.float16, torch.bfloat16)
KINDS = {
    "affine": Architecture((1, 2, 1)),
    "relu": Architecture((1, 2, 1), "relu"),
    "norm": Architecture((1, 2, 2, 1), "mish", norm=True, dropout=(0, 0.3, 0.3, 0)),
    "residual": Architecture((1, 2, 1), "relu", residual="linear"),
}

Check = Callable[[torch.device], str]


def goldens(device: torch.device) -> str:
    """Compare with the outputs of the original programs, in float32."""
    worst, count = 0.0, 0
    for case in json.loads((GOLDENS / "manifest.json").read_text(encoding="utf-8"))["cases"]:
        if "file" not in case:
            continue
        hypernetwork, golden = hnloader.load(GOLDENS / case["file"]), load_file(GOLDENS / case["golden"])
        for key, expected in golden.items():
            side, width, *strength = key.split(".", 2)
            if side != "x":
                context = golden[f"x.{width}"].float().to(device)
                found = hypernetwork(context, float(strength[0]))["kv".index(side)]
                worst, count = max(worst, relative_error(found.cpu(), expected)), count + 1
    assert worst < SAME, f"differs by {worst:.1e}"
    return f"{count} outputs differ by {worst:.0e} at most"


def kinds(device: torch.device) -> str:
    """Compare every kind of file in every precision with `exact`, and check that the model is restored."""
    results = []
    for dtype in (torch.float32, *HALF):
        unet, worst = make_unet().to(device, dtype), 0.0
        before, plain = fingerprint(unet), run(unet)
        for architecture in KINDS.values():
            styles = [_style(architecture)]
            with attach(unet, styles, 0.8, exact=True):
                exact = run(unet)
            wide = copy.deepcopy(unet).float()
            with attach(wide, styles, 0.8, exact=True):
                truth = run(wide)
            with attach(unet, styles, 0.8):
                found = run(unet)
            assert_untouched(unet, before)
            assert not torch.equal(found, plain), "no effect"
            allowed = 2 * rms(exact - truth) + SAME * rms(truth)
            worst = max(worst, rms(found - truth) / allowed)
            assert rms(found - truth) <= allowed, (
                f"{architecture} in {dtype}: {rms(found - truth):.1e} of {allowed:.1e}"
            )
        assert torch.equal(run(unet), plain), "the plain model has a different result"
        results.append(f"{str(dtype).removeprefix('torch.')} {worst:.2f}")
    return f"error relative to the tolerance: {', '.join(results)}"


def moves(device: torch.device) -> str:
    """Move a model with an attachment to the CPU and back, and to another precision."""
    unet, styles = make_unet().to(device), [_style(KINDS["affine"]), _style(KINDS["relu"])]
    plain = run(unet)
    with attach(unet, styles, 0.8) as attachment:
        first = run(unet)
        away = run(unet.cpu())
        assert relative_error(away, first) < 1e-4, "different result on the CPU"
        assert torch.equal(run(unet.to(device)), first), "different result after moving back"
        half = run(unet.to(device, torch.float16))
        assert relative_error(half, first) < 0.02, "different result in float16"
        unet.to(device, torch.float32)
        attachment.set_strength(0)
        nothing = run(unet)
    assert torch.equal(run(unet), nothing), "strength 0 has an effect"
    assert relative_error(nothing, plain) < 0.02, "float16 lost more than its rounding"
    return "cpu, back, float16, float32"


def modes(device: torch.device) -> str:
    """Run in `inference_mode`, in `autocast` and with gradients."""
    styles, results = [_style(KINDS["affine"]), _style(KINDS["relu"])], []
    unet = make_unet().to(device)
    contexts: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast(device.type, torch.float16 if device.type == "cuda" else torch.bfloat16),
    }
    for name, mode in contexts.items():
        with mode(), attach(unet, styles, 0.8, exact=True):
            exact = run(unet)
        with attach(unet, styles, 0.8):
            outside = run(unet)
            with mode():
                found, again = run(unet), run(unet)
            assert torch.equal(run(unet), outside), f"different result after {name}"
        assert torch.equal(found, again), f"two results under {name}"
        error = relative_error(found.float(), exact.float())
        assert error < (1e-2 if name == "autocast" else SAME), f"{error:.1e} under {name}"
        results.append(f"{name} {error:.0e}")
    inputs = unet_inputs()
    text = inputs["encoder_hidden_states"].to(device).requires_grad_()
    gradients = []
    for exact in (True, False):
        with attach(unet, styles, 0.8, exact=exact):
            given = {**moved(inputs, torch.float32, device), "encoder_hidden_states": text}
            gradients.append(torch.autograd.grad(unet(**given).sample.square().sum(), text)[0])
    error = relative_error(gradients[1], gradients[0])
    assert error < 1e-4, f"gradients differ by {error:.1e}"
    return f"{', '.join(results)}, gradients {error:.0e} from exact"


def offloads(device: torch.device) -> str:
    """Use the offloading modes of diffusers, enabled before and after attaching."""
    if device.type == "cpu":
        return "skipped: the CPU has no offloading"
    style = hypernetwork_paths()["outline"]
    ways: dict[str, Callable[[Any], object]] = {
        "model": lambda pipe: pipe.enable_model_cpu_offload(device=device),
        "sequential": lambda pipe: pipe.enable_sequential_cpu_offload(device=device),
        "group": lambda pipe: _by_groups(pipe, device),
    }
    pipe = pipeline_on(device)
    with hnloader.attach(pipe, style, 0.8):
        expected = image(pipe)
    for name, way in ways.items():
        for late in (True, False):
            pipe = pipeline_on(torch.device("cpu"))
            if late:
                way(pipe)
            with hnloader.attach(pipe, style, 0.8):
                if not late:
                    way(pipe)
                error = (image(pipe) - expected).abs().max()
            assert error < 0.02, f"{name}, attached {'after' if late else 'before'}: {error:.3f} of 1"
    return f"{', '.join(ways)}: the same image"


def compiled(device: torch.device) -> str:
    """Compare a compiled model with eager mode at several strengths."""
    unet, results = make_unet().to(device), []
    styles = [_style(KINDS["affine"]), _style(KINDS["relu"])]
    call = torch.compile(unet)
    inputs = moved(unet_inputs(), torch.float32, device)
    compilations = 0
    with attach(unet, styles) as attachment, torch.no_grad():
        for strength in (0.8, 0.3, -0.5):
            attachment.set_strength(strength)
            error = relative_error(call(**inputs).sample.cpu(), run(unet))
            assert error < 1e-4, f"{error:.1e} at strength {strength}"
            results.append(f"{error:.0e}")
            graphs_now = counters["stats"]["unique_graphs"]
            compilations = compilations or graphs_now
            assert graphs_now == compilations, f"strength {strength} was compiled again"
    with torch.no_grad():
        error = relative_error(call(**inputs).sample.cpu(), run(unet))
    assert error < 1e-4, f"{error:.1e} after detaching"
    return f"differs from eager by {', '.join(results)}"


def graphs(device: torch.device) -> str:
    """Capture a CUDA graph while attached, and replay it with another text and another sample."""
    if device.type == "cpu":
        return "skipped on the CPU"
    results = []
    for dtype in (torch.float32, *HALF):
        unet = make_unet().to(device, dtype)
        inputs = {name: value.clone() for name, value in moved(unet_inputs(), dtype, device).items()}
        given = [inputs["sample"], inputs["encoder_hidden_states"]]
        with attach(unet, [_style(KINDS["affine"]), _style(KINDS["relu"])], 0.8), torch.no_grad():
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):  # torch asks for a few calls before the capture, on another stream
                for _ in range(3):
                    unet(**inputs)
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                output = unet(**inputs).sample
            for _ in range(2):
                for tensor in given:
                    tensor.copy_(torch.randn_like(tensor))
                graph.replay()
                found = output.float().cpu()
                error = relative_error(found, unet(**inputs).sample.float().cpu())
                assert error < (SAME if dtype == torch.float32 else 0.02), f"{error:.1e} in {dtype} with another text"
        results.append(f"{str(dtype).removeprefix('torch.')} {error:.0e}")
    return f"differs from eager by {', '.join(results)}"


def states(device: torch.device) -> str:
    """Count the layers that are folded, kept and live, in every precision and batch."""
    results: dict[str, None] = {}
    for dtype in (torch.float32, *HALF):
        for batch in (1, 4, 8):
            unet = make_unet().to(device, dtype)
            inputs = moved(unet_inputs(batch=batch), dtype, device)
            for name in ("affine", "relu", "norm"):
                with attach(unet, _style(KINDS[name]), 0.8) as attachment:
                    run(unet, inputs)
                    plans = {(row.kind, row.plan) for row in attachment.explain().rows}
                own = "fold" if name == "affine" else "live"
                assert plans == {("self", own), ("cross", "cache")}, f"{name}, {dtype}, batch {batch}: {plans}"
                results[f"{name} {own}"] = None
    return f"self-attention: {', '.join(results)}; cross-attention: cache"


def no_memory(device: torch.device) -> str:
    """Run out of memory while attaching: an error, an unchanged model, and success later."""
    if device.type == "cpu":
        return "skipped on the CPU"
    wide = {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "norm_num_groups": 32}
    unet = make_unet(cross_attention_dim=768, **wide).to(device)
    inputs = {**unet_inputs(), "encoder_hidden_states": torch.randn(2, 7, 768)}
    styles = [_style(KINDS[name], (320, 640, 768, 1280)) for name in ("affine", "relu")]
    before, plain, results = fingerprint(unet), run(unet, inputs), []
    with attach(unet, styles):
        expected = run(unet, inputs)
    for style in styles:
        style.release()
    torch.cuda.empty_cache()
    for spare in (4, 24, 64, 150, 600):
        with _only(spare * 2**20, device):
            attachment = None
            try:
                attachment = attach(unet, styles)
                found = run(unet, inputs)
                results.append(f"{spare} MB: done")
                assert relative_error(found, expected) < SAME, "different result with little memory"
            except torch.cuda.OutOfMemoryError:
                results.append(f"{spare} MB: out of memory")
        if attachment is not None:
            assert relative_error(run(unet, inputs), expected) < SAME, "different result after memory was freed"
            attachment.detach()
        assert_untouched(unet, before)
        assert torch.equal(run(unet, inputs), plain)
        for style in styles:
            style.release()
    assert "out" in results[0] and "done" in results[-1], results
    return ", ".join(results)


CHECKS: dict[str, Check] = {
    "goldens": goldens,
    "kinds and precisions": kinds,
    "moves": moves,
    "modes": modes,
    "offloading": offloads,
    "torch.compile": compiled,
    "CUDA graphs": graphs,
    "states": states,
    "no memory": no_memory,
}


# -- models and outputs


def run(unet: nn.Module, inputs: dict[str, object] | None = None) -> Tensor:
    """Return the prediction for fixed inputs, in float32 on the CPU."""
    weight = next(unet.parameters())
    with torch.no_grad():
        found: Tensor = unet(**moved(inputs or unet_inputs(), weight.dtype, weight.device)).sample
    return found.float().cpu()


def rms(x: Tensor) -> float:
    return float(x.float().square().mean().sqrt())


def pipeline_on(device: torch.device) -> Any:
    return load_model(pipeline_folder(), device=str(device), dtype="float32").pipeline


def image(pipe: Any, seed: int = 3) -> Tensor:
    """Return an image of the bundled pipeline, [height, width, 3], 0 to 1, with noise from the CPU."""
    random = torch.Generator().manual_seed(seed)
    made = pipe(
        "a large red circle in the center on a white background",
        num_inference_steps=8,
        generator=random,
        output_type="pt",
    ).images[0]
    found: Tensor = made.float().cpu()
    return found


def _style(architecture: Architecture, widths: tuple[int, ...] = WIDTHS["sd1"]) -> Hypernetwork:
    if architecture == KINDS["relu"]:
        return make_hypernetwork(widths)
    torch.manual_seed(1)
    made = Hypernetwork.new(widths, architecture, name="style").requires_grad_(False)
    for parameter in made.parameters():
        parameter.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim > 1 else 0.2))
    return made


def _by_groups(pipe: Any, device: torch.device) -> None:
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        options = {"offload_type": "block_level", "num_blocks_per_group": 1}
        apply_group_offloading(part, onload_device=device, offload_device=torch.device("cpu"), **options)


@contextlib.contextmanager
def _only(spare: int, device: torch.device) -> Iterator[None]:
    """Limit the memory for tensors to `spare` bytes more during the block."""
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + spare) / total, device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
