"""A plain MQTT requester, independent of the bridge's own client."""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from paho.mqtt.client import topic_matches_sub

from tests.lab.mqtt import Broker, Connection, Message


class _Absent(Enum):
    ABSENT = "absent"


ABSENT: Final = _Absent.ABSENT
"""Send no such property, where leaving the argument out means one of our own choice."""


class Reply(Message):
    """A reply, and its parsed body."""

    __slots__ = ()

    @property
    def body(self) -> dict[str, Any]:
        parsed = self.json
        assert isinstance(parsed, dict), parsed
        return parsed

    @property
    def code(self) -> int:
        return int(self.body["code"])

    @property
    def data(self) -> Any:
        return self.body["data"]

    @property
    def error(self) -> str | None:
        return self.body.get("error")

    @property
    def detail(self) -> str | None:
        return self.body.get("detail")

    @property
    def request_id(self) -> str | None:
        return self.body.get("request_id")


@dataclass(eq=False, slots=True)
class _Expected:
    """A reply that somebody waits for: the first message that fits belongs to them."""

    correlation: bytes | None
    request_id: str | None
    topic_filters: tuple[str, ...]
    request_topic: str
    future: asyncio.Future[Reply] = field(default_factory=asyncio.Future)

    def fits(self, message: Message) -> bool:
        if self.future.done() or message.topic == self.request_topic:
            return False
        if self.correlation is not None:
            return message.correlation == self.correlation
        if not any(topic_matches_sub(one, message.topic) for one in self.topic_filters):
            return False
        return self.request_id is None or _request_id(message.payload) == self.request_id


class Requester(Connection):
    """Asks over MQTT 5 or 3.1.1; any number of questions at a time.

    Takes the options of `Connection`. What is not an awaited reply (a second reply to one
    question, too) goes to `next_message`, and to ``messages``, which keeps them all.
    """

    def __init__(self, broker: Broker, **options: Any) -> None:
        super().__init__(broker, **options)
        self.name = os.urandom(6).hex()
        self.messages: list[Message] = []
        self._inbox: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._expected: dict[bytes | None, list[_Expected]] = {}
        self._listening: dict[str, asyncio.Task[int]] = {}

    def reply_topic(self, prefix: str = "plugin", client_level: str | None = None) -> str:
        """The reply topic of this requester alone."""
        return "/".join(filter(None, (prefix, "reply", client_level, self.name)))

    async def next_message(self, timeout: float = 5.0, topic: str = "#") -> Message:
        """The oldest message not returned before whose topic matches the filter."""
        async with asyncio.timeout(timeout):
            while True:
                for message in self._inbox:
                    if topic_matches_sub(topic, message.topic):
                        self._inbox.remove(message)
                        return message
                self._arrived.clear()
                await self._arrived.wait()

    async def ask(
        self,
        operation: str,
        fields: Mapping[str, Any] | None = None,
        *,
        qos: int = 1,
        response_topic: str | bytes | _Absent | None = None,
        correlation: bytes | _Absent | None = None,
        expiry: int | None = None,
        user_properties: Mapping[str, str] | None = None,
        prefix: str = "plugin",
        client_level: str | None = None,
        retain: bool = False,
        timeout: float = 10.0,
    ) -> Reply:
        """Ask for an operation and return its reply; `TimeoutError` when none comes.

        Unless told otherwise, an MQTT 5 question carries a response topic and correlation
        data of our own; on 3.1.1 these go into the payload as `reply_to` and `request_id`.
        With ``response_topic=ABSENT``, or one of the caller's, the operation's default reply
        topic is heard as well. Pass ``correlation=ABSENT`` to be found by topic alone.
        """
        body = dict(fields or {})
        if self.version == "3.1.1":
            if response_topic is None:
                body.setdefault("reply_to", self.reply_topic(prefix, client_level))
            body.setdefault("request_id", os.urandom(8).hex())
        default = "/".join(filter(None, (prefix, "reply", client_level, operation)))
        return await self.ask_raw(
            "/".join(filter(None, (prefix, "request", operation, client_level))),
            json.dumps(body, ensure_ascii=False).encode(),
            qos=qos,
            response_topic=response_topic or self.reply_topic(prefix, client_level),
            listen=() if response_topic is None else (f"{default}/#",),
            correlation=correlation,
            request_id=body.get("request_id"),
            expiry=expiry,
            user_properties=user_properties,
            retain=retain,
            timeout=timeout,
        )

    async def ask_raw(
        self,
        topic: str,
        payload: bytes | str,
        *,
        qos: int = 1,
        response_topic: str | bytes | _Absent | None = None,
        listen: Sequence[str] = (),
        correlation: bytes | _Absent | None = None,
        request_id: object = None,
        expiry: int | None = None,
        user_properties: Mapping[str, str] | None = None,
        retain: bool = False,
        timeout: float = 10.0,
    ) -> Reply:
        """Publish any bytes on any topic and return the reply to them.

        The reply is the first message with the correlation data that was sent. Where none
        was (3.1.1, or ABSENT) it is the first on the response topic or a filter of
        ``listen``, with that ``request_id`` in its body if one is given.
        """
        if response_topic is None:
            response_topic = self.reply_topic()
        plain = isinstance(response_topic, str) and _subscribable(response_topic)
        filters = (*((str(response_topic),) if plain else ()), *listen)
        await asyncio.gather(*(self._listen(one) for one in filters))
        if correlation is None:
            correlation = os.urandom(12)
        if correlation is ABSENT or self.version == "3.1.1":
            correlation = None
        wanted = request_id if isinstance(request_id, str) else None
        expected = self._expect(_Expected(correlation, wanted, filters, topic))
        try:
            async with asyncio.timeout(timeout):
                await self.publish(
                    topic,
                    payload,
                    qos=qos,
                    response_topic=None if response_topic is ABSENT else response_topic,
                    correlation=correlation,
                    expiry=expiry,
                    user_properties=user_properties,
                    retain=retain,
                )
                return await expected.future
        except TimeoutError:
            raise TimeoutError(f"no reply to {topic} within {timeout} s") from None
        finally:
            self._expected[correlation].remove(expected)

    def received(self, message: Message) -> None:
        for expected in self._candidates(message):
            if expected.fits(message):
                expected.future.set_result(Reply.of(message))
                return
        self.messages.append(message)
        self._inbox.append(message)
        self._arrived.set()

    def _expect(self, expected: _Expected) -> _Expected:
        self._expected.setdefault(expected.correlation, []).append(expected)
        return expected

    def _candidates(self, message: Message) -> list[_Expected]:
        by_correlation = self._expected.get(message.correlation, []) if message.correlation else []
        return [*by_correlation, *self._expected.get(None, [])]

    async def _listen(self, topic_filter: str) -> None:
        # Shared, so that of many first questions at once none is asked before the SUBACK.
        if topic_filter not in self._listening:
            self._listening[topic_filter] = asyncio.create_task(self.subscribe(topic_filter))
        await self._listening[topic_filter]


def _subscribable(topic: str) -> bool:
    return 0 < len(topic) < 256 and topic.isprintable() and not set(topic) & set("+#$")


def _request_id(payload: bytes) -> object:
    try:
        body = json.loads(payload)
    except ValueError:
        return None
    return body.get("request_id") if isinstance(body, dict) else None
