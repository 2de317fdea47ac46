"""Requests and responses of the server."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Request:
    query: dict[str, str]


@dataclass
class Response:
    status: int = 200
    body: bytes | None = None
    content_type: str = "text/plain"
    headers: dict[str, str] = field(default_factory=dict)
