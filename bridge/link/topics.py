"""Topics: what is a request, where its reply goes, and where it may not go."""

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from ..errors import Forbidden, ReplyTopicForbidden, Text

_LONGEST = 256
# Of a request topic whose reply can have a topic (bytes), unless its levels are short.
_LONGEST_REQUEST = 512
# Of any MQTT string (MQTT 5.0, section 1.5.4), in bytes.
_LONGEST_OF_ALL = 65535
# What MQTT forbids in a topic name, and what makes brokers close the connection: wildcards, NUL,
# control characters, lone surrogates and Unicode's non-characters (MQTT 5.0, sections 1.5.4, 4.7).
_UNUSABLE = re.compile(
    "[+#\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane << 16 | 0xFFFE)}{chr(plane << 16 | 0xFFFF)}" for plane in range(17))
    + "]"
)
_CLIENT_NAMED_LIKE_OPERATION = Text(
    "请求主题中的客户端名不能与操作同名", "a client level may not be the name of an operation"
)


# What is kept of a requester, and each of its reply topics, has this name in it.
_LONGEST_CLIENT = 128
_LONG_CLIENT = Text(
    f"请求主题中的客户端名最长 {_LONGEST_CLIENT} 个字符",
    f"a client level has at most {_LONGEST_CLIENT} characters",
)


class Asked(NamedTuple):
    """What a request topic says: `<prefix>/request/<operation>[/<client>]`."""

    operation: str
    client: str | None


class Topics:
    def __init__(
        self, prefix: str, share: str, instance: str, reply_filters: Sequence[str]
    ) -> None:
        self.requests = f"{prefix}/request/"
        self._reply = f"{prefix}/reply/"
        self._never = (f"{prefix}/request", f"{prefix}/status", "devices")
        self._reply_filters = [topic_filter.split("/") for topic_filter in reply_filters]
        self.presence = f"{prefix}/status/{instance}"
        # The presence of all bridges.
        self.statuses = f"{prefix}/status/+"
        shared = f"$share/{share}/" if share else ""
        self.filters = [f"{shared}{self.requests}+", f"{shared}{self.requests}+/+"]
        # Tells bridges of one share from others, and does not tell the share's name.
        self.digest = hashlib.sha256("\n".join(self.filters).encode()).hexdigest()[:16]

    def is_request(self, topic: str) -> bool:
        """Whether a topic matches one of `filters`."""
        return topic.startswith(self.requests) and topic.count("/", len(self.requests)) < 2

    def asked(self, topic: str) -> Asked:
        """What a topic that matched one of `filters` asks for; it is not checked again."""
        operation, _, client = topic.removeprefix(self.requests).partition("/")
        return Asked(operation, client or None)

    def default_reply(self, asked: Asked, request_id: str | None) -> str:
        """Where a reply goes that was given no topic, or a forbidden one."""
        levels = [asked.operation] if asked.client is None else [asked.client, asked.operation]
        if request_id is not None:
            levels.append(request_id)
        return self._reply + "/".join(levels)

    def check_client(self, asked: Asked, operations: Sequence[str]) -> None:
        """Raise Forbidden if the client level is too long, or an operation's name.

        With that, default reply topics would be ambiguous.
        """
        if asked.client in operations:
            raise Forbidden(reason=_CLIENT_NAMED_LIKE_OPERATION)
        if asked.client is not None and len(asked.client) > _LONGEST_CLIENT:
            raise Forbidden(reason=_LONG_CLIENT)

    def check_reply(self, topic: object, asked: Asked, named_by: str) -> str:
        """The reply topic that the requester named in the property `named_by`.

        Raises ReplyTopicForbidden unless it is a plain topic of 1-256 bytes, below the
        requester's own reply topics or in `MQTT_REPLY_TOPICS`.
        """
        below = self._reply if asked.client is None else f"{self._reply}{asked.client}/"
        # Its length first: to look at each of 64 K characters takes 2 ms.
        if (
            isinstance(topic, str)
            and len(topic) <= _LONGEST
            and is_plain(topic)
            and len(topic.encode()) <= _LONGEST
        ):
            if topic.startswith(below) and len(topic) > len(below):
                return topic
            if self._is_extra(topic):
                return topic
        raise ReplyTopicForbidden(allowed=below).about(named_by, topic)

    def _is_extra(self, topic: str) -> bool:
        if any(topic == root or topic.startswith(f"{root}/") for root in self._never):
            return False
        levels = topic.split("/")
        return any(_matches(topic_filter, levels) for topic_filter in self._reply_filters)


def is_too_long(topic: str) -> bool:
    """Whether a request topic has a level so long that its reply topic would be too long."""
    return (
        len(topic) > _LONGEST_CLIENT
        and len(topic.encode("utf-8", "surrogateescape")) > _LONGEST_REQUEST
        and any(len(level) > _LONGEST_CLIENT for level in topic.split("/"))
    )


def is_plain(topic: str) -> bool:
    """Whether a topic can be published to: no wildcard, nothing that brokers refuse, no `$`."""
    return _is_plain_again(topic) if len(topic) <= _LONGEST else _is_plain(topic)


def _is_plain(topic: str) -> bool:
    if not topic or topic.startswith("$") or _UNUSABLE.search(topic):
        return False
    return len(topic.encode()) <= _LONGEST_OF_ALL


# Whoever asks, asks again: a requester's replies go to a few topics.
_is_plain_again = lru_cache(maxsize=1024)(_is_plain)


def _matches(topic_filter: Sequence[str], levels: Sequence[str]) -> bool:
    for position, wanted in enumerate(topic_filter):
        if wanted == "#":
            return True
        if position >= len(levels) or wanted not in ("+", levels[position]):
            return False
    return len(topic_filter) == len(levels)
