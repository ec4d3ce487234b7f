"""API documents made from the table of operations: OpenAPI 3.1 and 3.0, AsyncAPI 3.0.

Each is made once, when it is first asked for, and kept; only the addresses in it are
`PUBLIC_URL`, or where that is not set those by which its reader reached us.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Self

import orjson

from ..devices.models import JsonObject
from ..settings import Settings
from .asyncapi import asyncapi, mqtt_servers
from .flattened import flattened
from .openapi import openapi

_HOST_HEADER = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a reader reached us; `host` as in a URL, `port` with its colon or empty."""

    scheme: str
    host: str
    port: str

    @classmethod
    def of(cls, host_header: str | None, settings: Settings, *, secure: bool) -> Self:
        """The address that a `Host` header names, or ours as set if it names none."""
        match = _HOST_HEADER.fullmatch(host_header or "")
        scheme = "https" if secure else "http"
        if match is None:
            return cls(scheme, "localhost", f":{settings.service_port}")
        return cls(scheme, match[1], match[2] or "")

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}{self.port}"


class Document:
    """One document, as it is sent.

    Whether API keys are asked for (`guarded`) is part of it, and may change while we run.
    """

    def __init__(
        self, make: Callable[[bool], JsonObject], servers: Callable[[Address], object]
    ) -> None:
        self._servers = servers
        self.parts = cache(lambda guarded: _cut(make(guarded)))

    def __call__(self, guarded: bool, reached: Address) -> tuple[bytes, bytes, bytes]:
        """In parts, of which only the second is the reader's own."""
        before, after = self.parts(guarded)
        return before, orjson.dumps(self._servers(reached)), after


class Documents:
    """The documents of one bridge."""

    def __init__(self, settings: Settings) -> None:
        made = cache(lambda guarded: openapi(settings.language, guarded))

        def ours(reached: Address) -> list[JsonObject]:
            return [{"url": settings.public_url or reached.url}]

        self.by_path = {
            # OpenAPI 3.1.
            "/openapi.json": Document(made, ours),
            # OpenAPI 3.0 in the plain form that platforms for language models import.
            "/openapi-3.0.json": Document(lambda guarded: flattened(made(guarded)), ours),
            # AsyncAPI 3.0. A broker on our own machine is named as its reader reached us.
            "/asyncapi.json": Document(
                lambda _: asyncapi(settings), lambda reached: mqtt_servers(settings, reached.host)
            ),
        }


def _cut(document: JsonObject) -> tuple[bytes, bytes]:
    """What stands before and after the servers, in JSON."""
    # The readers' order: what it is, where it is, what it offers.
    head = {name: document[name] for name in ("openapi", "asyncapi", "info") if name in document}
    rest = {name: part for name, part in document.items() if name not in head}
    return orjson.dumps(head)[:-1] + b',"servers":', b"," + orjson.dumps(rest)[1:]
