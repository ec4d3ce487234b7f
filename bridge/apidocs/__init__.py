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


Document = Callable[[bool, Address], bytes]


class Documents:
    """The documents of one bridge, as they are sent.

    Whether API keys are asked for (`guarded`) is part of them, and may change while it runs.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._openapi = cache(lambda guarded: openapi(settings.language, guarded))
        self._flattened = cache(lambda guarded: flattened(self._openapi(guarded)))
        self._asyncapi = cache(lambda: asyncapi(settings))
        self.by_path: dict[str, Document] = {
            "/openapi.json": self.openapi,
            "/openapi-3.0.json": self.openapi_3_0,
            "/asyncapi.json": self.asyncapi,
        }

    def openapi(self, guarded: bool, reached: Address) -> bytes:
        """OpenAPI 3.1, as JSON."""
        return _with_servers(self._openapi(guarded), self._servers(reached))

    def openapi_3_0(self, guarded: bool, reached: Address) -> bytes:
        """OpenAPI 3.0 in the plain form that platforms for language models import."""
        return _with_servers(self._flattened(guarded), self._servers(reached))

    def _servers(self, reached: Address) -> list[JsonObject]:
        return [{"url": self._settings.public_url or reached.url}]

    def asyncapi(self, guarded: bool, reached: Address) -> bytes:
        """AsyncAPI 3.0. A broker on our own machine is named as its reader reached us."""
        del guarded
        return _with_servers(self._asyncapi(), mqtt_servers(self._settings, reached.host))


def _with_servers(document: JsonObject, servers: object) -> bytes:
    # The readers' order: what it is, where it is, what it offers.
    head = {name: document[name] for name in ("openapi", "asyncapi", "info") if name in document}
    return orjson.dumps({**head, "servers": servers, **document})
