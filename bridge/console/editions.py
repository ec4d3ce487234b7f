"""What readers of the console are told: an edition a second, written once for all who may see the
same, however many they are.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import orjson

from ..access import Grant
from ..activity import Activity, AnsweredRequest, News
from ..errors import Forbidden
from ..models import Health, JsonObject
from ..settings import Settings


class Editions:
    """Makes them, when someone asks."""

    def __init__(
        self, activity: Activity, settings: Settings, health: Callable[[], Health]
    ) -> None:
        self._activity = activity
        self._settings = settings
        self._health = health
        self._follower = activity.follow()
        self._latest: Edition | None = None

    def latest(self) -> "Edition":
        """The edition of the last second that is over."""
        latest = self._latest
        if latest is None or latest.news.second != self._activity.last_second():
            number = 0 if latest is None else latest.number + 1
            latest = self._latest = self._edition(number)
        return latest

    def _edition(self, number: int) -> "Edition":
        about_us = {
            "health": self._health(),
            "instance": self._settings.instance,
            "workers": self._settings.workers,
        }
        news = self._follower.news()
        return Edition(number, news, about_us, self._activity, self._activity.noted)


@dataclass(slots=True)
class Edition:
    """What is told in one second: to those who heard all before it the news, else the history."""

    number: int
    news: News
    about_us: JsonObject
    activity: Activity
    # How many requests had been noted when it was made.
    noted: int
    written: dict[tuple[str, Grant | None], bytes] = field(default_factory=dict)

    def event(self, grant: Grant | None, told: int | None) -> bytes:
        """What a reader with this grant is sent who was last told the edition of that number."""
        kind = "second" if told == self.number - 1 else "history"
        written = self.written.get((kind, grant))
        if written is None:
            news = self.news if kind == "second" else self._history()
            written = self.written[kind, grant] = self._written(kind, news, grant)
        return written

    def _history(self) -> News:
        """All that was noted until this edition was made; the next one tells what came since."""
        news = self.activity.follow().news()
        since = self.activity.noted - self.noted
        news.requests = news.requests[: max(0, len(news.requests) - since)]
        return news

    def _written(self, kind: str, news: News, grant: Grant | None) -> bytes:
        body = {
            "second": news.second,
            "time": news.time,
            "window": news.window,
            "seconds": news.seconds,
            "requests": list(_seen_by(grant, news.requests)),
            **self.about_us,
        }
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps(body))


def _seen_by(grant: Grant | None, requests: list[AnsweredRequest]) -> Iterator[AnsweredRequest]:
    return (seen for seen in requests if _may_see(grant, seen))


def _may_see(grant: Grant | None, seen: AnsweredRequest) -> bool:
    """Whether a key may be told of a request: what it may not do itself, it is not told of."""
    if grant is None:
        return True
    if grant.devices is not None and seen.device_uuid is None:
        return False
    try:
        grant.check(seen.operation, seen.device_uuid)
    except Forbidden:
        return False
    return True
