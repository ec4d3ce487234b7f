"""What a check is, and what it finds."""

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ..database.pool import Database
from ..errors import Text
from ..settings import Settings

# What a server may take to answer; a check makes do with little more.
ANSWER_SECONDS = 3.0

Level = Literal["ok", "note", "failed", "skipped"]

# Advice is a line in two languages, or one that reads alike in both: a command, a setting.
Advice = Text | str


@dataclass(frozen=True, slots=True)
class Finding:
    level: Level
    says: Text
    advice: tuple[Text, ...] = ()


@dataclass(slots=True)
class Examination:
    settings: Settings
    database: Database
    name: str = field(default_factory=lambda: f"doctor-{secrets.token_hex(4)}")


class Check(NamedTuple):
    """One thing to look at, once what it needs is sound, and where the settings ask for it."""

    subject: Text
    look: Callable[[Examination], Awaitable[Finding]]
    needs: tuple[Text, ...] = ()
    applies: Callable[[Settings], bool] = lambda _: True


def ok(zh: str, en: str) -> Finding:
    return Finding("ok", Text(zh, en))


def note(zh: str, en: str, *advice: Advice) -> Finding:
    """Worth knowing; the bridge can run all the same."""
    return Finding("note", Text(zh, en), tuple(map(_line, advice)))


def failed(zh: str, en: str, *advice: Advice) -> Finding:
    """The bridge, or a part of it, can't work so."""
    return Finding("failed", Text(zh, en), tuple(map(_line, advice)))


def skipped(zh: str, en: str) -> Finding:
    """A check that was not made, and why."""
    return Finding("skipped", Text(f"已跳过：{zh}", f"skipped: {en}"))


def _line(advice: Advice) -> Text:
    return Text(advice, advice) if isinstance(advice, str) else advice
