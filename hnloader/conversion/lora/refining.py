"""Refine a fitted LoRA end to end: its UNet outputs learn those with the hypernetworks, on sampled trajectories.

A fit matches the keys and values of each layer alone. Errors of layers add up or cancel out in the output of the UNet,
which is what an image is made of. Refining starts from the fit and minimizes the error of that output.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.conversion.lora.base_model import BaseModel, Projection
from hnloader.conversion.lora.context_samples import (
    ROLES,
    Progress,
    Role,
    Sampling,
    Statistics,
    random_inputs,
    running_modules,
)
from hnloader.conversion.lora.export_result import ALPHA, LayerChange, Refinement
from hnloader.conversion.lora.lora_chain import Chain
from hnloader.conversion.lora.model_runner import DiffusersDenoiser
from hnloader.network import SIDES

__all__ = ["refine"]

# Share of the time for sampling trajectories to learn from.
_SAMPLING = 0.25
_MOST_CALLS = 1500
# Size of the first steps, relative to the size of each factor.
_RATE = 0.003
_WARM_UP = 0.1
# A long memory, because a step sees a single call of the UNet.
_BETAS = (0.97, 0.999)
# Far from the seeds of the fit and of the grid.
_FIRST_SEED = 100_000
# Values in a UNet, above which memory matters more than time.
_LARGE = 100_000_000
_STEPS = 20  # of each trajectory, as images are made
_MEASURED = 2  # trajectories for choosing and for measuring, each
# The other projections of a layer, which can make up for what keys and values cannot express, and their rank.
_OTHERS: tuple[Projection, ...] = ("to_q", "to_out.0")
_FEED_FORWARD: tuple[Projection, ...] = ("ff.net.0.proj", "ff.net.2")
_OTHER_RANK = 16
_OBSERVED = 8  # calls whose inputs of these are observed
# Added to second moments, relative to the mean of their diagonal, so that rare directions are not learned from noise.
_RIDGE = 1e-3
# The loss is scaled for float16, whose small gradients become zero otherwise.
_SCALE = 1024.0


@dataclass(frozen=True)
class _Call:
    """A call of the UNet: its inputs on the CPU, and its output with the hypernetworks."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor


def refine(
    base: BaseModel,
    chain: Chain,
    sampling: Sampling,
    changes: Sequence[LayerChange],
    statistics: Statistics,
    minutes: float,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[list[LayerChange], Refinement | None]:
    """Return the changes with refined factors, and what that gained.

    On KeyboardInterrupt, which `progress` may raise, return the best factors so far. Without any yet, return `changes`
    and None.

    Args:
        base: The model.
        chain: The hypernetworks.
        sampling: Prompts, steps and guidance of the trajectories.
        changes: The fitted low-rank changes.
        statistics: The contexts of the fit.
        minutes: Time to take, including the sampling.
        progress: Called with the finished and all seconds.
        clock: Returns the time in seconds. Default: `time.monotonic`.
    """
    start, total = clock(), minutes * 60
    job = _Job(base, chain, sampling, changes, statistics)
    interrupted = False

    def elapsed() -> float:
        seconds = clock() - start
        progress(min(int(seconds), int(total)), max(int(total), 1), "Refining")
        return seconds / total

    with job.model():
        try:
            if job.sample(elapsed):
                job.learn(elapsed)
        except KeyboardInterrupt:
            interrupted = True
        if job.before is None or not job.steps:
            return list(changes), None
        after = job.error("test")
    return job.refined(), Refinement(job.before, after, job.steps, clock() - start, interrupted)


class _Job:
    """The trajectories and the factors of one refinement.

    Attributes:
        before: Error of the fitted factors on the "test" calls; None until it is measured.
        steps: Optimization steps so far.
    """

    def __init__(
        self,
        base: BaseModel,
        chain: Chain,
        sampling: Sampling,
        changes: Sequence[LayerChange],
        statistics: Statistics,
    ) -> None:
        self._denoiser = base.denoiser()
        self._unet: Any = base.runnable()[1] if self._denoiser is None else self._denoiser.unet
        self._chain, self._sampling, self._fitted = chain, sampling, list(changes)
        self._sites = [site for site in base.sites if any(chain.links(site, side) for side in SIDES)]
        self._modules = running_modules(self._unet, base, self._sites)
        self._calls: dict[Role, list[_Call]] = {"fit": [], "validation": [], "test": []}
        self._generator = torch.Generator().manual_seed(sampling.seed)
        device = next(self._unet.parameters()).device
        self._device = device
        self._changes: list[LayerChange] = []
        self._inverses: list[Tensor] = []
        self._factors: list[tuple[nn.Parameter, nn.Parameter]] = []
        for change in changes:
            moments = statistics.of(change.site).moments
            # As in the fit: attention ignores the mean of the keys.
            moment = moments.inner_cc if change.projection == "to_k" else moments.cc
            self._add(change, moment / max(moments.count, 1))
        self._improved = False
        self._sizes: dict[Role, float] = {}
        self.before: float | None = None
        self.steps = 0

    def refined(self) -> list[LayerChange]:
        """Return the changes with the best factors, in their stored dtype."""
        if not self._improved:
            return self._fitted
        dtype = next(change.down.dtype for change in self._fitted if change.down is not None)
        return [
            replace(change, down=(down @ inverse).cpu().to(dtype), up=up.cpu().to(dtype))
            for change, (down, up), inverse in zip(self._changes, self._best, self._inverses, strict=True)
        ]

    def _add(self, change: LayerChange, moment: Tensor, *, whitened: bool = False) -> None:
        """Add a change to learn, given the second moment of the inputs of its projection.

        The inputs have a variance of very different sizes in different directions. `down` is learned for inputs of
        variance 1 in all of them: root root^T is the second moment. With `whitened`, it is already for such inputs.
        """
        assert change.down is not None and change.up is not None
        unseen = _RIDGE * moment.diagonal().mean().clamp_min(1e-12)
        eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
        root = torch.linalg.cholesky(moment + unseen * eye).float().to(self._device)
        self._changes.append(change)
        self._inverses.append(torch.linalg.inv(root))
        down = change.down.float().to(self._device)
        down = down if whitened else down @ root
        up = change.up.float().to(self._device).clone()
        self._factors.append((nn.Parameter(down), nn.Parameter(up)))
        self._best = self._copy()

    def _module(self, change: LayerChange) -> nn.Module:
        """Return the running module of a change."""
        if change.projection.startswith("ff."):
            module: nn.Module = self._unet.get_submodule(change.name)
            return module
        return self._modules[change.site.name].get_submodule(change.projection)

    @torch.no_grad()
    def _add_others(self) -> None:
        """Add changes of the other two projections, which start at zero."""
        # A webui's UNet has other names for the feed-forward layers.
        in_diffusers = self._denoiser is None or isinstance(self._denoiser, DiffusersDenoiser)
        modules = {
            (site, name): self._module(LayerChange(site, name))
            for site in self._sites
            for name in (*_OTHERS, *(_FEED_FORWARD if in_diffusers and site.name.endswith("attn2") else ()))
        }
        moments: dict[nn.Module, Tensor] = {}
        count: dict[nn.Module, int] = {}

        def observe(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0].flatten(0, -2).float()
            moments[module] = moments.get(module, 0.0) + (x.T @ x).cpu().double()  # some GPUs lack float64
            count[module] = count.get(module, 0) + len(x)

        with contextlib.ExitStack() as stack, self._applied(self._factors):
            for module in modules.values():
                stack.callback(module.register_forward_pre_hook(observe).remove)
            for call in self._calls["fit"][:: max(1, len(self._calls["fit"]) // _OBSERVED)]:
                self._run(call)
        size = sum(_size(down) for down, _ in self._factors) / len(self._factors)
        for (site, name), module in modules.items():
            moment = moments[module] / count[module]
            weight: Any = module.get_parameter("weight")
            # Of the size of the fitted factors, for inputs of variance 1.
            down = size * torch.randn(_OTHER_RANK, weight.shape[1], generator=self._generator)
            zeros = torch.zeros(weight.shape[0], _OTHER_RANK)
            self._add(LayerChange(site, name, down=down, up=zeros), moment, whitened=True)
            del moments[module]

    @contextlib.contextmanager
    def model(self) -> Iterator[None]:
        """Freeze the weights of the UNet and save its memory while this is active."""
        frozen = [parameter for parameter in self._unet.parameters() if parameter.requires_grad]
        values = sum(parameter.numel() for parameter in self._unet.parameters())
        saves = (
            values > _LARGE
            and hasattr(self._unet, "enable_gradient_checkpointing")
            and not self._unet.is_gradient_checkpointing
        )
        for parameter in frozen:
            parameter.requires_grad_(False)
        if saves:
            self._unet.enable_gradient_checkpointing()
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
            if saves:
                self._unet.disable_gradient_checkpointing()

    # -- trajectories

    def sample(self, elapsed: Callable[[], float]) -> bool:
        """Record trajectories: some for choosing, some for measuring, and many to learn from.

        Return False if the time ended before the last.
        """

        def check() -> None:
            elapsed()

        for number in range(_MEASURED):
            self._trajectory("validation", number, check)
            self._trajectory("test", number, check)
        self.before = self.error("test")
        number = 0
        while elapsed() < _SAMPLING and len(self._calls["fit"]) < _MOST_CALLS:
            self._trajectory("fit", number, check)
            number += 1
        return bool(self._calls["fit"])

    def _trajectory(self, role: Role, number: int, step_done: Callable[[], None]) -> None:
        sampling = self._sampling
        prompts = [prompt for index, prompt in enumerate(sampling.prompts) if ROLES[index % len(ROLES)] == role]
        seed = sampling.seed + _FIRST_SEED * (1 + list(self._calls).index(role)) + number
        if self._denoiser is None:
            for step in range(sampling.steps):
                inputs = random_inputs(self._unet, 999 - 1000 * step // sampling.steps, self._generator)
                with self._recording(role), torch.no_grad():
                    self._unet(**inputs)
                step_done()
            return
        self._denoiser.denoise(
            prompts[number % len(prompts)],
            seed=seed,
            steps=_STEPS,
            guidance=sampling.guidance,
            watched=self._recording(role),
            step_done=lambda step: step_done(),
        )

    @contextlib.contextmanager
    def _recording(self, role: Role) -> Iterator[None]:
        """Apply the hypernetworks, and record the calls of the UNet while this is active."""
        calls = self._calls[role]

        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            last = calls[-1].kwargs if calls else {}
            kept = {name: _kept(value, last.get(name)) for name, value in kwargs.items()}
            calls.append(_Call(tuple(_kept(value, None) for value in args), kept, _kept(_tensor(output), None)))

        with contextlib.ExitStack() as stack:
            for site in self._sites:
                for side in SIDES:
                    projection = getattr(self._modules[site.name], f"to_{side}")

                    def run(_: nn.Module, inputs: tuple[Any, ...], site: Any = site, side: Any = side) -> Any:
                        return self._chain.apply(site, side, inputs[0]), *inputs[1:]

                    stack.callback(projection.register_forward_pre_hook(run).remove)
            stack.callback(self._unet.register_forward_hook(record, with_kwargs=True).remove)
            yield

    # -- learning

    def learn(self, elapsed: Callable[[], float]) -> None:
        """Optimize the factors until the time is over; keep the best."""
        self._add_others()
        usual = sum(_size(up) for _, up in self._factors) / len(self._factors)
        groups = [{"params": [factor], "size": _size(factor) or usual} for factor in self._flat]
        optimizer = torch.optim.Adam(groups, lr=0.0, betas=_BETAS)
        begun = elapsed()
        least, measured, took = self.error("validation"), begun, 0.0
        took = elapsed() - begun
        while (share := elapsed()) < 1:
            at = (share - begun) / max(1 - begun, 1e-9)
            for group in optimizer.param_groups:
                group["lr"] = group["size"] * _RATE * min(1, at / _WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * at))
            self._step(optimizer)
            # Measuring takes at most a tenth of the time.
            if (now := elapsed()) - measured >= 10 * took or now >= 1:
                error = self.error("validation")
                measured, took = elapsed(), elapsed() - now
                if error < least:
                    least, self._best, self._improved = error, self._copy(), True

    def _step(self, optimizer: torch.optim.Optimizer) -> None:
        calls = self._calls["fit"]
        call = calls[int(torch.randint(len(calls), (), generator=self._generator))]
        with self._applied(self._factors):  # until the backward pass, which runs checkpointed blocks again
            output = self._run(call)
            wrong = output.float() - call.output.to(output.device).float()
            loss = wrong.square().mean() + self._guided(wrong).square().mean()
            (loss * _SCALE).backward()
        gradients = [factor.grad for factor in self._flat if factor.grad is not None]
        if all(torch.isfinite(gradient).all() for gradient in gradients):
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.steps += 1

    @torch.no_grad()
    def error(self, role: Role) -> float:
        """Return the error of the best factors ("test") or the current ones, relative to the hypernetworks' change."""
        if role not in self._sizes:
            self._sizes[role] = self._distance(role)
        with self._applied(self._best if role == "test" else self._factors):
            return self._distance(role) / max(self._sizes[role], 1e-30)

    def _distance(self, role: Role) -> float:
        """Return the distance between the outputs now and those with the hypernetworks."""
        wrong = (self._run(call).double().cpu() - call.output.double() for call in self._calls[role])
        return math.sqrt(sum(float(self._guided(each).square().sum()) for each in wrong))

    def _guided(self, outputs: Tensor) -> Tensor:
        """Return what guidance makes of the outputs for the empty prompt and the prompt, scaled to the same size.

        Images follow from this sum, in which the difference between both outputs counts several times.
        """
        scale = self._sampling.guidance
        if not isinstance(self._denoiser, DiffusersDenoiser) or scale <= 1:
            return outputs
        plain, prompted = outputs.chunk(2)
        total: Tensor = scale * prompted - (scale - 1) * plain
        return total / math.sqrt(scale**2 + (scale - 1) ** 2)

    @property
    def _flat(self) -> list[nn.Parameter]:
        return [factor for pair in self._factors for factor in pair]

    def _copy(self) -> list[tuple[Tensor, Tensor]]:
        return [(down.detach().clone(), up.detach().clone()) for down, up in self._factors]

    @contextlib.contextmanager
    def _applied(self, factors: Sequence[Sequence[Tensor]]) -> Iterator[None]:
        """Add the low-rank changes to the outputs of their projections while this is active."""
        with contextlib.ExitStack() as stack:
            for change, (whitened, up), inverse in zip(self._changes, factors, self._inverses, strict=True):
                projection = self._module(change)
                down = whitened @ inverse

                def add(
                    _: nn.Module, inputs: tuple[Any, ...], output: Tensor, down: Tensor = down, up: Tensor = up
                ) -> Tensor:
                    added = functional.linear(functional.linear(inputs[0].float(), down), up)
                    return output + (added * (ALPHA / len(down))).to(output.dtype)

                stack.callback(projection.register_forward_hook(add).remove)
            yield

    def _run(self, call: _Call) -> Tensor:
        parameter = next(self._unet.parameters())
        args = [_moved(value, parameter.device) for value in call.args]
        kwargs = {name: _moved(value, parameter.device) for name, value in call.kwargs.items()}
        return _tensor(self._unet(*args, **kwargs))


def _size(factor: Tensor) -> float:
    return float(factor.detach().square().mean().sqrt())


def _tensor(output: Any) -> Tensor:
    """Return the tensor in the output of a UNet."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


def _kept(value: Any, last: Any) -> Any:
    """Return a copy of an argument on the CPU; the copy of the last call if it is equal."""
    if isinstance(value, dict):
        before = last if isinstance(last, dict) else {}
        return {name: _kept(part, before.get(name)) for name, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    with torch.inference_mode(False):
        copy = value.detach().cpu().clone()
    return last if isinstance(last, Tensor) and torch.equal(last, copy) else copy


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, dict):
        return {name: _moved(part, device) for name, part in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value
