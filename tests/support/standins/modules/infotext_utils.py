"""Generation parameters: written, read and pasted."""

from __future__ import annotations

import json
import re
from typing import Any

from modules import shared
from modules.script_callbacks import run

_FIELD = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def quote(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if re.search("[,\n:]", str(value)) else value


def unquote(text: str) -> str:
    try:
        return json.loads(text) if text[:1] == text[-1:] == '"' else text
    except ValueError:
        return text


def parse_generation_parameters(text: str) -> dict[str, Any]:
    prompt, _, last = text.strip().rpartition("\n")
    fields: dict[str, Any] = {key: unquote(value) for key, value in _FIELD.findall(last)}
    fields["Prompt"] = prompt
    if "Hypernet" in fields and hasattr(shared, "hypernetworks"):  # old images
        fields["Prompt"] += f"<hypernet:{fields['Hypernet']}:{fields.get('Hypernet strength', '1.0')}>"
    return fields


def paste(text: str) -> dict[str, Any]:
    """Paste a text; callbacks may change the fields."""
    fields = parse_generation_parameters(text)
    run("infotext_pasted", text, fields)
    return fields
