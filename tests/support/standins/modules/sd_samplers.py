"""Samplers of the stand-in host, by name alone."""

from __future__ import annotations


def visible_sampler_names() -> list[str]:
    return ["DPM++ 2M", "Euler a"]
