"""The server of the page: it keeps routes and messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Routes:
    def __init__(self) -> None:
        self.handlers: dict[str, Callable[..., Any]] = {}

    def get(self, path: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def register(handler: Callable[..., Any]) -> Callable[..., Any]:
            self.handlers[path] = handler
            return handler

        return register


class PromptServer:
    instance: PromptServer | None = None

    def __init__(self) -> None:
        self.routes = Routes()
        self.events: list[tuple[str, dict[str, Any]]] = []
        PromptServer.instance = self

    def send_sync(self, event: str, data: dict[str, Any]) -> None:
        self.events.append((event, data))
