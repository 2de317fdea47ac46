"""Tags in prompts, and what acts on them, in the stand-in host."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from modules import errors

extra_network_registry: dict[str, ExtraNetwork] = {}
extra_network_aliases: dict[str, ExtraNetwork] = {}


class ExtraNetwork:
    def __init__(self, name: str) -> None:
        self.name = name

    def activate(self, p, params_list) -> None:
        raise NotImplementedError

    def deactivate(self, p) -> None:
        raise NotImplementedError


class ExtraNetworkParams:
    """`items` as they stood between the colons; `positional` and `named` are read from them."""

    def __init__(self, items=None) -> None:
        self.items = items or []
        pairs = [item.split("=", 2) if isinstance(item, str) else [item] for item in self.items]
        self.named = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
        self.positional = [item for item, pair in zip(self.items, pairs, strict=True) if len(pair) != 2]

    def __eq__(self, other: object) -> bool:
        return self.items == other.items


def initialize() -> None:
    extra_network_registry.clear()
    extra_network_aliases.clear()


def register_extra_network(extra_network: ExtraNetwork) -> None:
    extra_network_registry[extra_network.name] = extra_network


def register_extra_network_alias(extra_network: ExtraNetwork, alias: str) -> None:
    extra_network_aliases[alias] = extra_network


def register_default_extra_networks() -> None:
    from modules.extra_networks_hypernet import ExtraNetworkHypernet

    register_extra_network(ExtraNetworkHypernet())


def parse_prompts(prompts: list[str]) -> tuple[list[str], dict]:
    """The prompts without their tags, and the tags of the first one by kind."""
    parsed = []
    for prompt in prompts:
        tags = defaultdict(list)
        for kind, body in re.findall(r"<(\w+):([^>]+)>", prompt):
            tags[kind].append(ExtraNetworkParams(body.split(":")))
        parsed.append((re.sub(r"<\w+:[^>]+>", "", prompt), tags))
    return [prompt for prompt, _ in parsed], parsed[0][1]


def _each(data: dict, act) -> None:
    """Those named in the prompt first, then all others with nothing. One that fails with its tags gets none."""
    named = [(extra_network_registry.get(kind) or extra_network_aliases.get(kind), tags) for kind, tags in data.items()]
    done = []
    for network, tags in named:
        if network is not None and _attempt(act, network, tags):
            done.append(network)
    for network in list(extra_network_registry.values()):
        if network not in done:
            _attempt(act, network, [])


def _attempt(act, network: ExtraNetwork, tags: list) -> bool:
    try:
        act(network, tags)
    except Exception as error:
        errors.display(error, f"extra network {network.name}")
        return False
    return True


def activate(p, data: dict) -> None:
    _each(data, lambda network, tags: network.activate(p, tags))


def deactivate(p, data: dict) -> None:
    _each(data, lambda network, _: network.deactivate(p))


def get_user_metadata(filename: str) -> Any:
    """Return the content of the JSON file beside a network, of any type."""
    path = Path(filename).with_suffix(".json")
    return json.loads(path.read_text()) if path.is_file() else {}
