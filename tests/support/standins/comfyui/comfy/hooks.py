"""Hooks: changes of the model's options for one conditioning."""

from __future__ import annotations

import enum
from typing import Any


class EnumHookScope(enum.Enum):
    AllConditioning = "all_conditioning"
    HookedOnly = "hooked_only"


class TransformerOptionsHook:
    def __init__(self, transformers_dict: dict[str, Any], hook_scope: EnumHookScope) -> None:
        self.transformers_dict, self.hook_scope = transformers_dict, hook_scope


class HookGroup:
    def __init__(self) -> None:
        self.hooks: list[TransformerOptionsHook] = []

    def add(self, hook: TransformerOptionsHook) -> None:
        self.hooks.append(hook)

    def clone_and_combine(self, other: HookGroup) -> HookGroup:
        combined = HookGroup()
        combined.hooks = [*self.hooks, *other.hooks]
        return combined
