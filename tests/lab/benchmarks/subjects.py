"""A small subject, whose benchmarks take milliseconds."""

from __future__ import annotations

from lab.benchmarks._models import Subject
from tests.support.small_models import make_unet, unet_inputs


def tiny_subject() -> Subject:
    """Make a UNet with a sixteenth of SD 1's widths."""
    return Subject("tiny", make_unet("sd1"), unet_inputs("sd1"))
