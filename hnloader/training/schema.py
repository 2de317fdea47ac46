"""Configurations as dataclasses: read from YAML with every mistake named, written as commented YAML.

A field of a configuration is declared by `setting(default, "what it is", ...)`; its type is the field's annotation.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from hnloader.errors import ConfigError, MissingExtraError
from hnloader.files import read_regular

T = TypeVar("T")

# Of a configuration file, in characters. The commented one with every setting has some 8,000.
_LARGEST = 1 << 20
_LARGEST_INT = 2**63 - 1
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxlong, _BRIEF.maxother = 3, 80, 80, 80


@dataclass(frozen=True)
class Rule:
    """What a setting means and which numbers it may be."""

    meaning: str
    least: float = -math.inf
    most: float = math.inf
    above: bool = False  # `least` itself is excluded


def setting(
    default: Any, meaning: str, *, least: float = -math.inf, most: float = math.inf, above: bool = False
) -> Any:
    """A documented field of a configuration; a mutable default may be given as it is."""
    rule = {"rule": Rule(meaning, least, most, above)}
    if dataclasses.is_dataclass(default) or isinstance(default, type):
        return field(default_factory=default, metadata=rule)  # type: ignore[arg-type]
    return field(default=default, metadata=rule)


def read(kind: type[T], given: object, where: str = "") -> T:
    """Make a `kind` from what YAML gave.

    Args:
        kind: a dataclass whose fields are declared by `setting`.
        given: a mapping.
        where: the key at which it stands, for messages.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a wrong type, or a number out of range.
    """
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where or 'the configuration'} is {_shown(given)}; keys with values were expected")
    hints = _hints(kind)
    fields = {each.name: each for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, object] = {}
    for key, value in given.items():
        at = f"{where}.{key}" if where else str(key)
        if key not in fields:
            meant = _meant(str(key), fields) or "; `hnloader train --init` lists those of this version"
            raise ConfigError(f"there is no setting {at!r}{meant}")
        values[str(key)] = _value(hints[str(key)], value, at, fields[str(key)].metadata["rule"])
    return kind(**values)


def read_file(kind: type, path: Path) -> dict[str, Any]:
    """The values in a YAML file, as far as it has any, held against what `kind` allows.

    Raises:
        ConfigError: it cannot be opened, is no YAML, or says something impossible; the message names the file.
    """
    try:
        text = read_regular(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {reason}") from error
    if len(text) > _LARGEST:
        raise ConfigError(f"{path} has more than {_LARGEST:,} characters: it is no configuration")
    try:
        given = read_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path} {error}") from error
    given = {} if given is None else given
    try:
        read(kind, given)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    assert isinstance(given, dict)
    return given


def read_yaml(text: str) -> object:
    """YAML as plain values; nothing that it names is made.

    Raises:
        ConfigError: it is no YAML, or has a value that its own tag does not allow.
        MissingExtraError: PyYAML is not installed.
    """
    yaml = _yaml()
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"is no YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError("is no YAML for a configuration: it nests too deeply") from error
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
        # The YAML package lets these through: `2001-99-99`, `!!float x`, `!!timestamp x`, ...
        raise ConfigError(f"is no YAML for a configuration: {error}") from error


def _yaml() -> Any:
    """The YAML package, at first use: `import hnloader` and its settings as mappings do without. MissingExtraError."""
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("Configurations in YAML need pyyaml: pip install 'hnloader[train]'") from error
    return yaml


def write(config: object, *, comments: bool = True) -> str:
    """The configuration as YAML, each setting after what it means."""
    return "\n".join(_lines(config, 0, comments)).strip() + "\n"


def plain(config: object) -> dict[str, object]:
    """The configuration as nested dicts, lists, text and numbers: what `read` takes."""
    assert dataclasses.is_dataclass(config)
    result: dict[str, object] = {}
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            result[each.name] = plain(value)
        else:
            result[each.name] = list(value) if isinstance(value, tuple) else value
    return result


# -- reading


_hints: Callable[[type], dict[str, Any]] = functools.cache(typing.get_type_hints)


def _value(hint: Any, value: object, at: str, rule: Rule) -> object:
    if dataclasses.is_dataclass(hint):
        return read(hint, {} if value is None else value, at)  # type: ignore[arg-type]
    kinds = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for kind in kinds:
        fits, made = _fits(kind, value, at, rule)
        if fits:
            _check_range(made, at, rule)
            return made
    choices = [choice for kind in kinds for choice in _choices(kind)]
    meant = _meant(str(value), choices) if choices and isinstance(value, str) else ""
    raise ConfigError(f"{at} is {_shown(value)}; {' or '.join(map(_kind_name, kinds))} was expected{meant}")


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
    if kind is int:
        return type(value) is int, value
    return isinstance(value, kind) and (kind is not int or not isinstance(value, bool)), value


def _number(value: object) -> float | None:
    """YAML 1.1 takes 1e-4 for text; everybody means the number."""
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
    if isinstance(value, int) and abs(value) > _LARGEST_INT:
        raise ConfigError(f"{at} is a number of {len(bin(value)) - 2:,} bits; at most 63 were expected")
    low = value <= rule.least if rule.above else value < rule.least
    if not math.isfinite(value) or low or value > rule.most:
        lower = f"{'above' if rule.above else 'at least'} {rule.least:g}" if rule.least > -math.inf else ""
        upper = f"at most {rule.most:g}" if rule.most < math.inf else ""
        wanted = " and ".join(filter(None, (lower, upper))) or "a finite number"
        raise ConfigError(f"{at} is {value:g}; {wanted} was expected")


def _choices(kind: Any) -> tuple[str, ...]:
    return tuple(map(str, typing.get_args(kind))) if typing.get_origin(kind) is Literal else ()


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return "a list"
    names = {float: "a number", int: "a whole number", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(kind, str(kind))


def _meant(given: str, known: Any) -> str:
    near = difflib.get_close_matches(given, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _shown(value: object) -> str:
    # YAML's aliases make lists of lists that would take all memory if they were written out.
    return _BRIEF.repr(value)[:80]


# -- writing


def _lines(config: Any, depth: int, comments: bool) -> list[str]:
    pad = "  " * depth
    lines: list[str] = []
    for each in dataclasses.fields(config):
        rule, value = each.metadata["rule"], getattr(config, each.name)
        section = dataclasses.is_dataclass(value)
        if comments:
            lines += ["", *(f"{pad}# {line}" for line in rule.meaning.splitlines())]
        if section:
            lines.append(f"{pad}{each.name}:")
            lines += [line for line in _lines(value, depth + 1, comments) if line or comments]
        else:
            shown = list(value) if isinstance(value, tuple) else value
            text = _yaml().safe_dump(shown, default_flow_style=True, width=1_000, allow_unicode=True)
            lines.append(f"{pad}{each.name}: {text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}")
    return lines
