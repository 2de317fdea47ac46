"""Prompts as conditions of the stand-in host's model."""

from __future__ import annotations

from typing import Any, NamedTuple


class SdConditioning(list):
    """Prompts, and the size of the images."""

    def __init__(self, prompts, is_negative_prompt=False, width=None, height=None, copy_from=None) -> None:
        super().__init__(prompts)
        self.width, self.height = width, height


class ScheduledPromptConditioning(NamedTuple):
    """A condition that holds until a step."""

    end_at_step: int
    cond: Any


def get_learned_conditioning(
    model, prompts, steps, hires_steps=None, use_old_scheduling=False
) -> list[list[ScheduledPromptConditioning]]:
    """Return one schedule for each prompt; for SDXL, a dictionary that contains the context."""
    from modules import sd_models

    found = sd_models.conditioning(list(prompts))
    conditions = [{"crossattn": cond, "vector": cond[0]} if model.is_sdxl else cond for cond in found]
    return [[ScheduledPromptConditioning(steps, cond)] for cond in conditions]
