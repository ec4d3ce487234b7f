"""The JSON columns of the platform's tables, which hold whatever years of pages and boards wrote.

A column that holds nothing (null, empty, `{}`) and one that can't be read are two different
things: the first leaves the defaults in force, the second must never do so.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import orjson

from .models import JsonObject
from .names import plain_name

# Nothing that we take is nested so deep, and what writes it again has limits of its own.
DEEPEST = 64
# From here on readers of JSON disagree on whole numbers, and at 2**64 writers give up.
TOO_LARGE = 2**53

_NUMBER = re.compile(r"[+-]?(\d{1,20}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,3})?")


@lru_cache(maxsize=2048)
def _parsed(text: str) -> JsonObject | None:
    # A pure function of the text, so that a cached result is never stale.
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if parsed is None:
        return {}
    if not isinstance(parsed, dict):
        return None
    if text.count("{") + text.count("[") > DEEPEST and is_too_deep(parsed):
        return None
    return parsed


def stored_object(text: str | None) -> Mapping[str, Any] | None:
    """A JSON column as an object: empty if it holds nothing, None if it can't be read.

    The object is shared and must not be changed.
    """
    return _parsed(text) if text and not text.isspace() else {}


def json_object(text: str | None) -> Mapping[str, Any]:
    """As `stored_object`; empty also if the column can't be read."""
    return stored_object(text) or {}


def is_too_deep(value: object) -> bool:
    """Whether a value is nested more than `DEEPEST` levels deep."""
    layer = [value]
    for _ in range(DEEPEST + 1):
        layer = [
            child
            for node in layer
            for child in (node.values() if isinstance(node, dict) else node)  # type: ignore[attr-defined]
            if isinstance(child, dict | list)
        ]
        if not layer:
            return False
    return True


def text_of(value: object) -> str | None:
    """A stored name or key as text; None if it is blank or no text at all."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value).strip()
    return text if plain_name(text) else None


def first_text(entry: Mapping[str, Any], *labels: str) -> str | None:
    """The first of the values under `labels` that is a usable text."""
    return next((text for label in labels if (text := text_of(entry.get(label)))), None)


def texts_of(entry: Mapping[str, Any], *labels: str) -> tuple[str, ...]:
    """All values under `labels` that are usable texts, in the order of `labels`."""
    return tuple(text for label in labels if (text := text_of(entry.get(label))))


def is_blank(value: object) -> bool:
    """Whether a stored value counts as not there: null or white space."""
    return value is None or (isinstance(value, str) and not value.strip())


def is_disabled(entry: Mapping[str, Any]) -> bool:
    """Whether `enabled` is false, 0, "false" or "0", in any case."""
    enabled = entry.get("enabled")
    if isinstance(enabled, str):
        return enabled.strip().casefold() in ("false", "0")
    return isinstance(enabled, int | float) and enabled == 0


def number_of(value: object) -> int | float | None:
    """A number, or the one that a text holds; None if it is none, or too large for JSON."""
    if isinstance(value, str):
        text = value.strip()
        value = float(text) if _NUMBER.fullmatch(text) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # This also excludes NaN.
    if not abs(value) < TOO_LARGE:
        return None
    return int(value) if value == int(value) else value


def whole_of(value: object) -> int | None:
    """As `number_of`, of whole numbers from 0 on; `1.0` and `"1"` are such."""
    number = number_of(value)
    return number if isinstance(number, int) and number >= 0 else None
