"""Set and take the functions on a model's layers, for all calls of the model that run at the same time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, NamedTuple

from torch import nn

from hnloader.attention.assembly import Assembly, Replacement
from hnloader.attention.projection import Dispatch, Hooked, Projection, Switch, class_forward

Hook = tuple[Hooked, "Callable[..., Any]"]


class Call(NamedTuple):
    """A call of the model in a thread, with its assembly and the replacements that it uses."""

    thread: int
    assembly: Assembly
    replacements: list[Replacement]


class Calls:
    """The calls of a model that run now, and the functions on its layers.

    One call, or several with the same assembly, set the functions of that assembly. If their assemblies differ, each
    function calls that of its thread; in a thread, the innermost call counts.
    """

    def __init__(self) -> None:
        self._running: list[Call] = []
        self._set: list[Replacement] = []
        self._hooks: dict[nn.Module, tuple[Hooked, int]] = {}
        self._switches: list[Switch] = []

    def __bool__(self) -> bool:
        return bool(self._running)

    @property
    def busy(self) -> bool:
        """True if functions are on the layers."""
        return bool(self._set)

    def begin(self, assembly: Assembly, replacements: list[Replacement]) -> None:
        """Begin a call in this thread."""
        usual = not (self._running or self._set or self._hooks or assembly.hooked)
        self._running.append(Call(threading.get_ident(), assembly, replacements))
        if usual:  # this comes before and after every step, so it is short
            for own, values in replacements:
                own.update(values)
            self._set, self._switches = replacements, [assembly.switch]
            assembly.switch.on = True
        else:
            self._update()

    def end(self, *, stay: bool) -> Assembly | None:
        """End the innermost call of this thread.

        Args:
            stay: Leave the functions on the layers if this was the last call, because autograd may compute again.

        Returns:
            Assembly of the call if no other call uses it.
        """
        thread = threading.get_ident()
        if len(self._running) == 1 and self._running[0].thread == thread and not (stay or self._hooks):
            assembly = self._running.pop().assembly
            for own, values in self._set:
                _remove(own, values)
            self._set = []
            assembly.switch.on = False
            return assembly
        call = next((call for call in reversed(self._running) if call.thread == thread), None)
        if call is None:
            return None
        self._remove(call)
        if self._running or not stay:
            self._update()
        return None if any(other.assembly is call.assembly for other in self._running) else call.assembly

    def _remove(self, call: Call) -> None:
        position = next(index for index in reversed(range(len(self._running))) if self._running[index] is call)
        del self._running[position]

    def stop(self) -> None:
        """Take everything off the layers, although calls may run."""
        self._running.clear()
        self._update()

    def drop_abandoned(self, model: nn.Module) -> None:
        """Forget calls that ended without notice: torch reports no KeyboardInterrupt, and torch 2.0 no exception.

        In other threads, only the end of the thread counts.
        """
        own, threads = threading.get_ident(), sys._current_frames()
        present = _count(threads.get(own), model) - 1  # without the call that begins
        mine = [call for call in self._running if call.thread == own]
        for call in [*mine[max(present, 0) :], *(call for call in self._running if call.thread not in threads)]:
            self._remove(call)

    def _update(self) -> None:
        """Set what the running calls need."""
        latest = {call.thread: call for call in self._running}
        calls = list(latest.values())
        if calls and all(call.replacements is calls[0].replacements for call in calls):
            self._put(calls[0].replacements, [(each, each.hook) for each in calls[0].assembly.hooked], calls)
        else:
            self._put(_dispatched(calls), _dispatched_hooks(calls), calls)

    def _put(self, replacements: list[Replacement], hooks: Sequence[Hook], calls: Sequence[Call]) -> None:
        """Set functions in the place of the earlier ones; other threads must not meet a module without."""
        self._switch(calls)
        if replacements is not self._set:
            for own, values in replacements:
                own.update(values)
            staying = {id(own): values for own, values in replacements}
            for own, values in self._set:
                new = staying.get(id(own), {})
                _remove(own, {name: value for name, value in values.items() if name not in new})
            self._set = replacements
        if hooks or self._hooks:
            before, self._hooks = self._hooks, {}
            for projection, hook in hooks:
                _, key = before.pop(projection.module, (projection, None))
                self._hooks[projection.module] = (projection, projection.set(hook, key))
            for projection, last in before.values():
                projection.take(last)

    def _switch(self, calls: Sequence[Call]) -> None:
        before, self._switches = self._switches, [call.assembly.switch for call in calls]
        for switch in self._switches:
            switch.on = True
        for switch in before:
            switch.on = switch in self._switches

    def __getstate__(self) -> dict[str, object]:
        """Copy no call; the layers of a copied model are bare."""
        return {"_running": [], "_set": [], "_hooks": {}, "_switches": []}


def _remove(own: dict[str, Any], values: dict[str, Any]) -> None:
    for name, value in values.items():
        if own.get(name) is value:
            del own[name]
        elif isinstance(projection := getattr(value, "__self__", None), Projection):
            projection.wrapped()


def _dispatched(calls: Sequence[Call]) -> list[Replacement]:
    """Return replacements that call the function of the present thread."""
    by_module: dict[int, tuple[dict[str, Any], nn.Module, dict[int, dict[str, Any]]]] = {}
    for call in calls:
        for (own, values), projection in zip(call.replacements, call.assembly.projections.values(), strict=True):
            by_module.setdefault(id(own), (own, projection.module, {}))[2][call.thread] = values
    found = []
    for own, module, by_thread in by_module.values():
        merged = {name: value for values in by_thread.values() for name, value in values.items()}
        forwards = {thread: values["forward"] for thread, values in by_thread.items() if "forward" in values}
        if forwards:
            merged["forward"] = Dispatch(forwards, lambda *args, module=module: class_forward(module, *args))
        found.append((own, merged))
    return found


def _dispatched_hooks(calls: Sequence[Call]) -> list[Hook]:
    """Return hooks that call the hook of the present thread."""
    by_module: dict[nn.Module, tuple[Hooked, dict[int, Callable[..., Any]]]] = {}
    for call in calls:
        for projection in call.assembly.hooked:
            by_module.setdefault(projection.module, (projection, {}))[1][call.thread] = projection.hook
    return [(first, Dispatch(hooks, lambda *_: None)) for first, hooks in by_module.values()]


def _count(frame: FrameType | None, model: nn.Module) -> int:
    """Count the calls of a model on a thread's stack."""
    code, count = nn.Module._call_impl.__code__, 0
    while frame is not None:
        count += frame.f_code is code and frame.f_locals.get("self") is model
        frame = frame.f_back
    return count
