"""Make texts and files with JSON headers: safetensors, .hns, configurations, tags, infotext."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lab.fuzz.choices import ODD_TEXTS, Choices

# -- safetensors


def safetensors(choices: Choices) -> bytes:
    """Make a hypernetwork in safetensors with changed JSON, lengths and data."""
    width = choices.pick((4, 8))
    header, size = _header(choices, width)
    text = _json_text(choices, header)
    length = choices.number() if choices.rarely(40) else len(text)
    data = choices.raw(4).ljust(size, b"\0")
    whole = (length & (1 << 64) - 1).to_bytes(8, "little") + text + data
    if choices.rarely(30):
        return whole[: choices.below(len(whole) + 1)]
    return whole + (choices.raw(4) if choices.rarely(30) else b"")


def _header(choices: Choices, width: int) -> tuple[dict[str, object], int]:
    metadata = {"step": 3, "name": "ink", "layer_structure": [1, 2, 1], "activation_func": "linear"}
    scope = choices.pick((str(width), f"{width}:self", f"{width}:0-6/2", f"{width}:cross:1,8-"))
    layout = {"layout": 1, "widths": [width]} if scope.isdecimal() else {"layout": 2, "scopes": [scope]}
    about = {**layout, "variant": "x", "metadata": metadata}
    for _ in range(choices.below(4)):
        about = _changed(choices, about)  # type: ignore[assignment]
    header: dict[str, object] = {
        "__metadata__": {"format": "pt", "hypernetwork": _json_text(choices, about).decode("latin-1")}
    }
    at = 0
    for side in "kv":
        shapes = {
            "0.weight": [2 * width, width],
            "0.bias": [2 * width],
            "1.weight": [width, 2 * width],
            "1.bias": [width],
        }
        for name, shape in shapes.items():
            count = shape[0] * (shape[1] if len(shape) > 1 else 1)
            kind = choices.pick(("F32", "F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3"))
            size = count * {"F32": 4, "I64": 8, "BOOL": 1, "F8_E4M3": 1}.get(kind, 2)
            header[f"{scope}.{side}.linear.{name}"] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
            at += size
    if choices.rarely(3):
        header = _changed(choices, header)  # type: ignore[assignment]
    return header, at


def _json_text(choices: Choices, value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=choices.rarely(2)).encode("utf-8", "surrogatepass")
    if choices.rarely(30):
        at = choices.below(len(text) + 1)
        text = (
            text[:at] + choices.pick((b'"a":1,', b"[" * 3000, b"1" * 5000, b"1e999", b"NaN", b"\xff", b",")) + text[at:]
        )
    return text


def _changed(choices: Choices, value: object, depth: int = 0) -> object:
    """Return the value with one part changed, removed or added."""
    if isinstance(value, dict) and value and not choices.rarely(6):
        key = choices.pick(tuple(value))
        if choices.rarely(8):
            return {each: part for each, part in value.items() if each != key}
        if choices.rarely(8):
            return {**value, choices.text(): _any_json(choices, 2)}
        return {**value, key: _changed(choices, value[key], depth + 1)}
    if isinstance(value, list) and value and not choices.rarely(6):
        at = choices.below(len(value))
        return [*value[:at], _changed(choices, value[at], depth + 1), *value[at + 1 :]]
    return _any_json(choices, 3)


def _any_json(choices: Choices, depth: int) -> object:
    kind = choices.below(12 if depth > 0 else 6)
    if kind < 6:
        return (None, choices.number(), choices.text(), True, 0.5, -1)[kind]
    if kind < 8:
        return [_any_json(choices, depth - 1) for _ in range(choices.below(4))]
    if kind < 10:
        name = choices.pick(("tensor", "dict", "tuple", "set", "frozenset", "float", "bytes", "bytearray"))
        return {name: _any_json(choices, depth - 1)}
    return {choices.text(): _any_json(choices, depth - 1) for _ in range(choices.below(3))}


# -- compositions


def hns(choices: Choices) -> bytes:
    """Make the text of a composition."""
    if choices.rarely(16):
        return _nested(choices, "[({", "])}")
    text = _structure(choices, 4)
    if choices.rarely(12):
        at = choices.below(len(text) + 1)
        text = text[:at] + choices.pick((",", ":", "(", "}", "'", '"', "\\", "\n", "#", "é", "\0")) + text[at:]
    return text.encode("utf-8", "surrogatepass")


def _structure(choices: Choices, depth: int) -> str:
    if depth == 0 or choices.rarely(3):
        return _member(choices)
    parts = [_structure(choices, depth - 1) for _ in range(choices.below(4))]
    kind = choices.below(5)
    if kind == 0:
        return "[" + ", ".join(parts) + "]"
    if kind == 1:
        return "{" + ", ".join(f"{part}: {_number(choices)}" for part in parts) + "}"
    if kind == 2:
        return "{" + ",".join(parts) + "}"
    if kind == 3:
        return f"({parts[0] if parts else ''}, {_number(choices)})"
    inner = ", ".join(parts).replace("'", '"')
    return f"'[{inner}]'"


def _member(choices: Choices) -> str:
    if choices.rarely(8):
        return choices.text()
    return choices.pick(("ink", "'ink'", '"ink"', "oil", "ink.pt", "missing", "'in\\x6b'", "' ink '", "self"))


def _number(choices: Choices) -> str:
    if choices.rarely(4):
        return str(choices.number())
    return choices.pick(
        ("1", "0.5", "0", "-1", "1.0", "nan", "inf", "1e999", "1e-400", "x", "'0.5'", "0x10", "1_0", "٣")
    )


def _nested(choices: Choices, opening: str, closing: str) -> bytes:
    depth = choices.pick((10, 17, 100, 3000))
    mark = choices.below(len(opening))
    return (opening[mark] * depth + "ink" + closing[mark] * (depth if choices.rarely(2) else 0)).encode()


# -- configurations


def config(choices: Choices) -> str:
    """Make a training configuration in YAML."""
    lines = []
    for _ in range(choices.below(8)):
        key = choices.pick(CONFIG_KEYS)
        if choices.rarely(12):
            key = choices.text()
        if key in ("hypernetwork", "embedding", "data", "prior", "previews") and not choices.rarely(6):
            lines.append(f"{key}:")
            for _ in range(choices.below(4)):
                lines.append(f"  {choices.pick(INNER_KEYS)}: {_yaml(choices, 2)}")
        else:
            lines.append(f"{key}: {_yaml(choices, 2)}")
    text = "\n".join(lines)
    if choices.rarely(12):
        text = choices.pick(ODD_YAML) + ("\n" + text if choices.rarely(2) else "")
    return text


def _yaml(choices: Choices, depth: int) -> str:
    kind = choices.below(10)
    if kind < 3:
        return choices.pick(YAML_VALUES)
    if kind == 3:
        return str(choices.number())
    if kind == 4:
        return json.dumps(choices.text())
    if kind == 5 and depth:
        return "[" + ", ".join(_yaml(choices, depth - 1) for _ in range(choices.below(4))) + "]"
    if kind == 6 and depth:
        return (
            "{"
            + ", ".join(f"{choices.pick(INNER_KEYS)}: {_yaml(choices, depth - 1)}" for _ in range(choices.below(3)))
            + "}"
        )
    if kind == 7:
        return choices.pick(
            ("&a ", "*a", "!!python/object/apply:os.system [a]", "!!python/name:lab.fuzz.canary.sing", "!x y")
        )
    return choices.pick(("1", "0.5", "true", "a", "[]"))


CONFIG_KEYS = (
    "model", "images", "output", "method", "start_from", "steps", "batch_size", "gradient_accumulation_steps",
    "learning_rate", "lr_scheduler", "lr_warmup_steps", "optimizer", "weight_decay", "max_grad_norm", "ema_decay",
    "snr_gamma", "noise_offset", "precision", "gradient_checkpointing", "seed", "save_every_n_steps",
    "save_total_limit", "validate_every_n_steps", "early_stopping_patience", "hypernetwork", "embedding", "data",
    "prior", "previews",
)  # fmt: skip
INNER_KEYS = (
    "layer_structure", "activation", "activate_output", "norm", "dropout", "initialization", "widths", "num_vectors",
    "initialization_text", "placeholder_token", "captions", "templates", "prefix", "resolution", "buckets",
    "random_flip", "background", "masks", "repeats", "caption_dropout", "validation_split", "weight", "prompts",
    "every_n_steps", "count", "num_inference_steps", "guidance_scale", "seed",
)  # fmt: skip
YAML_VALUES = (
    "1e-4", ".inf", "-.inf", ".nan", "0x7fffffffffffffffffff", "1" * 400, "2001-99-99", "2001-01-01", "1:30:00", "~",
    "on", "'5e-5:100, 1e-5:1000'", "auto", "relu", "[1, 2, 1]", "[1, 1e308, 1]", "[]", "{}", "!!binary aGk=",
    "!!set {a}", "? a", "|", "style.pt", "-1", "0", "1.5", "=", "<<", "!!float x", "!!int 1_", "!!timestamp 2",
    "0o9", "0b", "1e999",
)  # fmt: skip
ALIASES = "model: x"
for _name in "abcdefgh":
    ALIASES = ALIASES.replace("x", f"[&{_name} [x], *{_name}, *{_name}, *{_name}, *{_name}, *{_name}, *{_name}]")
ODD_YAML = (
    ALIASES,
    "steps: &s [*s]",
    "data: &d {flip: *d}",
    "<<: {steps: 3}",
    "--- \nsteps: 1\n--- \nsteps: 2",
    "[" * 400,
    "{a: " * 400,
    "? [a, b]\n: c",
    "- a",
    "%YAML 9.9\n---\nsteps: 1",
    "\tsteps: 1",
    "steps: 1\nsteps: 2",
    "!!python/object/apply:os.system ['true']",
    "null",
    "3",
)


# -- tags


def prompt(choices: Choices) -> str:
    """Make a prompt with tags."""
    return "".join(_prompt_part(choices) for _ in range(choices.below(6)))


def _prompt_part(choices: Choices) -> str:
    kind = choices.below(8)
    if kind < 4:
        fields = [_tag_name(choices), *(_tag_field(choices) for _ in range(choices.below(4)))]
        return f"<hypernet:{choices.pick((':', ':', ',')).join(fields)}>"
    if kind == 4:
        return choices.pick(("<", ">", "<hypernet:", "<hypernet", "<lora:a:1>", "<lora:a:1", ":", "<:>", "<a:>"))
    if kind == 5:
        return choices.pick(("<a:", "<hypernet:a:", "\\<", '"', " ")) * choices.pick((1, 3, 200))
    return choices.text()


def _tag_name(choices: Choices) -> str:
    if choices.rarely(3):
        name = choices.text()
        return '"' + name.replace('"', '""') + '"' if choices.rarely(2) else name
    return choices.pick(("ink", "a b", "C:/x/ink.pt", '"12:30"', '"', '""', '""""', "", " ", "C:\\ink", '"a"b'))


def _tag_field(choices: Choices) -> str:
    kind = choices.below(4)
    if kind == 0:
        return choices.pick(("0.8", "1", "-1", "nan", "inf", "1e999", "1e-400", "", " 1 ", "1_0", "٣", "0x1", "0,5"))
    if kind == 1:
        blocks = [choices.pick(("up", "mid", "down.1", "*", "", "a b", "up@")) for _ in range(1 + choices.below(3))]
        return "block=" + "+".join(
            f"{b}@{choices.pick(('0.5', '1', 'x', 'nan', ''))}" if choices.rarely(2) else b for b in blocks
        )
    if kind == 2:
        option = choices.pick(("start", "end", "k", "v", "END", "x", ""))
        return f"{option}={choices.pick(('0', '0.5', '1', 'x', 'nan', '-0.0'))}"
    return choices.text()


# -- infotext


def infotext(choices: Choices) -> str:
    """Make the infotext of an image."""
    lines = [_infotext_line(choices) for _ in range(choices.below(4))]
    settings = [
        f"{_infotext_key(choices)}{choices.pick((': ', ':', ' '))}{_infotext_value(choices)}"
        for _ in range(choices.below(7))
    ]
    return choices.pick(("\n", "\n", "\r\n", "\x0b")).join([*lines, choices.pick((", ", ",", " ,")).join(settings)])


def _infotext_line(choices: Choices) -> str:
    return choices.pick(("Negative prompt: ", "", "", "Negative prompt:")) + prompt(choices)


def _infotext_key(choices: Choices) -> str:
    plain: Sequence[str] = ("Steps", "Sampler", "Size-1", "Hires/x", "S", "", "a b c", "-a", "Hypernet hashes")
    return choices.pick(plain) * choices.pick((1, 1, 1, 300)) if not choices.rarely(8) else choices.text()


def _infotext_value(choices: Choices) -> str:
    if choices.rarely(3):
        return choices.pick(
            ('"a, b: c"', '"', '""', '"\\', '"a\\"', '"\\u12"', '"' + "\\" * 301, "a" * 300, '"1"', "[]")
        )
    return choices.pick(("20", "Euler a", "x:y", "", *ODD_TEXTS[:4]))
