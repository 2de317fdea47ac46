"""Read and write dataclasses as YAML, with an error that names each mistake.

`setting(default, "meaning", ...)` declares a field; the annotation of the field is its type.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import reprlib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from hnloader.errors import ConfigError, MissingExtraError, install_advice
from hnloader.files import read_regular

T = TypeVar("T")

# Characters of a configuration file; the template has about 8,000.
_MAX_LENGTH = 1 << 20
_MAX_INT = 2**63 - 1
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxlong, _BRIEF.maxother = 3, 80, 80, 80
_TYPE_NAMES = {
    float: "a number",
    int: "a whole number",
    str: "text",
    bool: "true or false",
    tuple: "a list",
    type(None): "nothing",
}


@dataclass(frozen=True)
class Rule:
    """The meaning of a setting and its range."""

    meaning: str
    least: float = -math.inf
    most: float = math.inf
    above: bool = False  # the range excludes `least`


def setting(
    default: Any, meaning: str, *, least: float = -math.inf, most: float = math.inf, above: bool = False
) -> Any:
    """Declare a documented field; a class as default makes a section."""
    rule = {"rule": Rule(meaning, least, most, above)}
    if isinstance(default, type):
        return field(default_factory=default, metadata=rule)
    return field(default=default, metadata=rule)


def read(kind: type[T], given: object, where: str = "") -> T:
    """Make a dataclass from plain values.

    Args:
        kind: A dataclass of `setting` fields.
        given: A mapping, as YAML gives it.
        where: The key of the mapping, for messages.

    Raises:
        ConfigError: A key is unknown, a value has a wrong type, or a number is out of range.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"{_place(where)}: expected keys with values, got {_BRIEF.repr(given)[:80]}.")
    hints = _hints(kind)
    fields = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for key, value in given.items():
        at = f"{where}.{key}" if where else str(key)
        if key not in fields:
            advice = _suggestion(str(key), fields) or " `hnloader train --init` prints the settings of this version."
            raise ConfigError(f"Unknown setting {at[:200]!r}.{advice}")
        values[str(key)] = _value(hints[str(key)], value, at, fields[str(key)].metadata["rule"])
    return kind(**values)


def read_file(kind: type, path: Path) -> dict[str, Any]:
    """Return the values in a YAML file, checked against `kind`, or raise ConfigError with the name of the file."""
    try:
        text = read_regular(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "the text is not UTF-8"
        raise ConfigError(f"{path} cannot be read: {reason}.") from error
    if len(text) > _MAX_LENGTH:
        raise ConfigError(f"{path}: expected a configuration of at most {_MAX_LENGTH:,} characters, got {len(text):,}.")
    try:
        given = read_yaml(text)
        given = {} if given is None else given
        read(kind, given)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    assert isinstance(given, dict)
    return given


def read_yaml(text: str) -> object:
    """Return the plain values in YAML; no object that it names is made.

    Raises:
        ConfigError: The text is not YAML, or a value does not fit its tag.
        MissingExtraError: PyYAML is missing.
    """
    yaml = _yaml()
    try:
        return yaml.safe_load(text)
    except RecursionError as error:
        raise ConfigError("Invalid YAML: it nests too deeply.") from error
    # PyYAML raises all of these: for `2001-99-99`, `!!float x`, `!!timestamp x`, ...
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        raise ConfigError(f"Invalid YAML: {' '.join(str(error).split())}.") from error


def _yaml() -> Any:
    """Import PyYAML at first use: `import hnloader` and settings in a mapping do not need it."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(f"YAML configurations require PyYAML. {install_advice('train')}.") from error
    return yaml


def write(config: object, *, comments: bool = True) -> str:
    """Return the configuration as YAML, each setting below its meaning."""
    return "\n".join(_lines(config, "", comments)).strip() + "\n"


def plain(config: Any) -> dict[str, object]:
    """Return the configuration as nested dicts, lists, text and numbers, which `read` takes."""
    result: dict[str, object] = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            result[each.name] = plain(value)
        else:
            result[each.name] = list(value) if isinstance(value, tuple) else value
    return result


def merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values with others in their place, at each depth."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with dotted keys such as "data.random_flip" as nested dicts."""
    result: dict[str, Any] = {}
    for key, value in settings.items():
        inner: Any = value
        for part in reversed(key.split(".")):
            inner = {part: inner}
        result = merged(result, inner)
    return result


# -- reading

_hints: Callable[[type], dict[str, Any]] = functools.cache(typing.get_type_hints)


def _place(where: str) -> str:
    return f"Setting {where!r}" if where else "Configuration"


def _value(hint: Any, value: object, at: str, rule: Rule) -> object:
    if dataclasses.is_dataclass(hint):
        return read(hint, {} if value is None else value, at)  # type: ignore[arg-type]
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for kind in kinds:
        fits, made = _fits(kind, value, at, rule)
        if fits:
            _check_range(made, at, rule)
            return made
    choices = [str(choice) for kind in kinds if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)]
    advice = _suggestion(value, choices) if isinstance(value, str) else ""
    wanted = " or ".join(map(_type_name, kinds))
    raise ConfigError(f"{_place(at)}: expected {wanted}, got {_BRIEF.repr(value)[:80]}.{advice}")


def _fits(kind: Any, value: object, at: str, rule: Rule) -> tuple[bool, object]:
    origin = typing.get_origin(kind)
    if origin is Literal:
        return value in typing.get_args(kind), value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False, None
        part = typing.get_args(kind)[0]
        return True, tuple(_value(part, item, f"{at}[{index}]", rule) for index, item in enumerate(value))
    if kind is float:
        number = _number(value)
        return number is not None, number
    return type(value) is kind, value


def _number(value: object) -> float | None:
    """Return a number; YAML 1.1 reads 1e-4 as text."""
    if type(value) in (int, float) or isinstance(value, str):
        try:
            return float(value)  # type: ignore[arg-type]
        except (ValueError, OverflowError):
            return None
    return None


def _check_range(value: object, at: str, rule: Rule) -> None:
    if type(value) not in (int, float):
        return
    assert isinstance(value, (int, float))
    if isinstance(value, int) and abs(value) > _MAX_INT:
        raise ConfigError(f"{_place(at)}: expected a number of at most 63 bits, got {len(bin(value)) - 2:,} bits.")
    low = value <= rule.least if rule.above else value < rule.least
    if not math.isfinite(value) or low or value > rule.most:
        lower = f"{'above' if rule.above else 'at least'} {rule.least:g}" if rule.least > -math.inf else ""
        upper = f"at most {rule.most:g}" if rule.most < math.inf else ""
        wanted = " and ".join(filter(None, (lower, upper))) or "a finite number"
        raise ConfigError(f"{_place(at)}: expected {wanted}, got {value:g}.")


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(kind))
    return _TYPE_NAMES[typing.get_origin(kind) or kind]


def _suggestion(given: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


# -- writing


def _lines(config: Any, pad: str, comments: bool) -> list[str]:
    lines: list[str] = []
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if comments:
            lines += ["", *(f"{pad}# {line}" for line in each.metadata["rule"].meaning.splitlines())]
        if dataclasses.is_dataclass(value):
            lines.append(f"{pad}{each.name}:")
            lines += [line for line in _lines(value, f"{pad}  ", comments) if line or comments]
        else:
            shown = list(value) if isinstance(value, tuple) else value
            text = _yaml().safe_dump(shown, default_flow_style=True, width=1_000, allow_unicode=True)
            lines.append(f"{pad}{each.name}: {text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}")
    return lines
