"""Hypernetworks on the attention layers of a model: find the layers, hook them, remove the hooks."""

from __future__ import annotations

from hnloader.attention.attach import Application, Attachment, attach, attachments
from hnloader.attention.explain import Explanation
from hnloader.attention.layout import AttentionSite, find_sites
from hnloader.errors import PartialMatchWarning

__all__ = [
    "Application",
    "Attachment",
    "AttentionSite",
    "Explanation",
    "PartialMatchWarning",
    "attach",
    "attachments",
    "find_sites",
]
