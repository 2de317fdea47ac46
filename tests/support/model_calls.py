"""Calls of a model that stop in their middle, and what hnloader may leave on a model between calls."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

from hnloader.attention import find_sites
from tests.support.plain_hooks import output


def call(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return output(model, inputs)


class Middle:
    """A hook between the layers of a model; copies of it do nothing."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action

    def __call__(self, *_: object) -> None:
        self.action()

    def __reduce__(self) -> tuple[object, ...]:
        return Middle, (bool,)


@contextlib.contextmanager
def in_the_middle(model: nn.Module, action: Callable[[], object]) -> Iterator[None]:
    """Run an action in each call of a model, between its layers."""
    handle = find_sites(model)[2].module.register_forward_pre_hook(Middle(action))
    try:
        yield
    finally:
        handle.remove()


def without_middle(module: nn.Module) -> nn.Module:
    """Remove the hook of `in_the_middle` from a copy."""
    for each in module.modules():
        for key, hook in list(each._forward_pre_hooks.items()):
            if isinstance(hook, Middle):
                del each._forward_pre_hooks[key]
    return module


def once(action: Callable[[], object]) -> Callable[[], None]:
    """Run an action the first time only, so that it may call the model."""
    left = [action]

    def run_first() -> None:
        if left:
            left.pop()()

    return run_first


def layers_of(model: nn.Module) -> dict[str, object]:
    """Describe all modules of a model except itself: classes, attributes, hooks."""
    hook_dicts = [name for name, value in vars(nn.Module()).items() if "hook" in name and isinstance(value, dict)]
    return {
        name: (type(module), sorted(vars(module)), [len(getattr(module, each)) for each in hook_dicts])
        for name, module in model.named_modules()
        if name
    }


def assert_bare_layers(model: nn.Module, bare: nn.Module) -> None:
    """Assert that the layers carry nothing and all tensors are the user's."""
    assert layers_of(model) == layers_of(bare)
    # While attached, compiled code needs a `forward` on the model itself.
    assert set(vars(model)) - set(vars(bare)) <= ({"forward"} if model._forward_hooks else set())
    assert len(model._forward_pre_hooks) <= 1 and len(model._forward_hooks) <= 1
    state = model.state_dict()
    for name, tensor in bare.state_dict().items():
        assert torch.equal(state.pop(name), tensor), name
    assert state == {}


class Held:
    """A call in another thread that waits in its middle."""

    def __init__(self, model: nn.Module, inputs: dict[str, Any]) -> None:
        self._model = model
        self._inputs = inputs
        self._arrived, self._resume = threading.Event(), threading.Event()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> Held:
        self._middle = in_the_middle(self._model, self._wait)
        self._middle.__enter__()
        self._future = self._pool.submit(self._run)
        assert self._arrived.wait(60)
        return self

    def _run(self) -> Tensor:
        self._thread = threading.current_thread()
        return call(self._model, self._inputs)

    def _wait(self) -> None:
        if threading.current_thread() is self._thread:
            self._arrived.set()
            assert self._resume.wait(60)

    def result(self) -> Tensor:
        """Let the call run to its end."""
        self._resume.set()
        return self._future.result(60)

    def __exit__(self, *_: object) -> None:
        self._resume.set()
        self._pool.shutdown()
        self._middle.__exit__(None, None, None)
