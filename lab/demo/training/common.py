"""Shared by the training stages: budget, averaged weights, checkpoints and log."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hnloader.formats.checkpoint import load_plain


@dataclass(frozen=True)
class Budget:
    """The limit of a stage: `steps`, or `minutes` of training time, whichever comes first."""

    steps: int = 10**9
    minutes: float = math.inf

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget that is used, 0 to 1."""
        return min(1.0, max(step / self.steps, seconds / 60.0 / self.minutes))


def cosine_rate(progress: float, step: int, warmup: int = 100, floor: float = 0.02) -> float:
    """Multiplier of the learning rate: linear over `warmup` steps, then half a cosine down to `floor`."""
    rise = min(1.0, (step + 1) / warmup)
    return rise * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))


class Average:
    """Exponential moving average of the parameters of one or more modules, kept in float32."""

    def __init__(self, modules: Iterable[nn.Module], decay: float) -> None:
        self.decay = decay
        self.parameters = [parameter for module in modules for parameter in module.parameters()]
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the live parameters; faster in the first steps."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.averages, [parameter.detach() for parameter in self.parameters], 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the live parameters; a second call undoes the first."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)


def write_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Save beside the target, then rename, so that a reader never meets half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    torch.save(state, temporary)
    temporary.replace(path)


@dataclass
class Trainer:
    """One stage's loop: optimizer, averaged weights, schedule, checkpoint and log.

    `loss(step)` computes the loss of one batch. `report(step)`, if given, is called every `report_every` steps with the
    averaged weights in place and returns a text for the log. The checkpoint at `checkpoint` is read if it exists, and
    training resumes from it, including the time already spent.
    """

    modules: dict[str, nn.Module]
    loss: Callable[[int], Tensor]
    budget: Budget
    checkpoint: Path
    rate: float
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    decay: float = 0.999
    save_every: int = 500
    log_every: int = 100
    report: Callable[[int], str] | None = None
    report_every: int = 1000

    def run(self) -> int:
        """Train until the budget is spent; the modules end with their averaged weights. Returns the number of steps."""
        self._average = Average(self.modules.values(), self.decay)
        parameters = self._average.parameters
        self._optimizer = torch.optim.AdamW(parameters, lr=self.rate, betas=self.betas, weight_decay=self.weight_decay)
        step, earlier = self._resume()
        started = time.monotonic()
        recent: list[Tensor] = []
        while True:
            seconds = earlier + time.monotonic() - started
            progress = self.budget.progress(step, seconds)
            if progress >= 1.0:
                break
            for group in self._optimizer.param_groups:
                group["lr"] = self.rate * cosine_rate(progress, step)
            loss = self.loss(step)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self._average.update(step)
            recent.append(loss.detach())
            step += 1
            if step % self.log_every == 0:
                mean = float(torch.stack(recent).mean())
                recent.clear()
                self._say(f"step {step:6d}  {seconds / 60:6.1f} min  loss {mean:.5f}")
            if step % self.save_every == 0:
                self._save(step, seconds)
            if self.report is not None and step % self.report_every == 0:
                self._average.swap()
                self._say(f"step {step:6d}  {self.report(step)}")
                self._average.swap()
        self._save(step, earlier + time.monotonic() - started)
        self._average.swap()
        return step

    def _say(self, text: str) -> None:
        print(text, flush=True)

    def _save(self, step: int, seconds: float) -> None:
        state = {
            "step": step,
            "seconds": seconds,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "average": self._average.averages,
            "optimizer": self._optimizer.state_dict(),
        }
        write_checkpoint(self.checkpoint, state)

    def _resume(self) -> tuple[int, float]:
        if not self.checkpoint.exists():
            return 0, 0.0
        state = load_plain(self.checkpoint)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for average, stored in zip(self._average.averages, state["average"], strict=True):
            average.copy_(stored)
        self._optimizer.load_state_dict(state["optimizer"])
        self._say(f"resumed at step {state['step']} after {state['seconds'] / 60:.1f} min")
        return int(state["step"]), float(state["seconds"])


def load_average(checkpoint: Path, modules: dict[str, nn.Module]) -> int:
    """Put a checkpoint's averaged weights into the modules; returns its step."""
    state = load_plain(checkpoint)
    parameters = [parameter for module in modules.values() for parameter in module.parameters()]
    with torch.no_grad():
        for parameter, stored in zip(parameters, state["average"], strict=True):
            parameter.copy_(stored)
    return int(state["step"])


def as_tensor(images: Any) -> Tensor:
    """uint8 (n, height, width, 3) array -> float32 (n, 3, height, width) tensor in -1 to 1, channels last."""
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)
    return tensor.contiguous(memory_format=torch.channels_last)


def as_images(tensor: Tensor) -> Any:
    """Convert float (n, 3, height, width), -1 to 1, to a uint8 (n, height, width, 3) array."""
    scaled = tensor.detach().float().add(1.0).mul(127.5).add(0.5).clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
