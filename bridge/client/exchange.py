"""A request's way to its reply, with as many tries as are safe and useful.

`ask` (again while the bridge's trouble passes) -> `_reply_to` (within the deadline) ->
`_send_until_answered` (again on the next connection) -> `_attempt` (once).
"""

import asyncio
import time
from dataclasses import dataclass

import orjson

from ..devices.models import JsonObject
from ..errors import PayloadTooLarge
from ..link import Link, LinkError, NotSentError, packets
from ..link.backoff import pauses
from .connection import Connection
from .correlation import Expected, Replies
from .errors import RETRIES, CallError, NoReply, Refused, Unheard

_NO_MATCHING_SUBSCRIBERS = 0x10
# A request that is a moment short of n seconds from its deadline still gets n (seconds).
_ROUNDING = 0.05
_JSON = b"application/json"


@dataclass(slots=True, eq=False)
class Question:
    """One request, through all attempts; `deadline` is on the loop's clock."""

    topic: str
    fields: JsonObject
    request_id: str
    deadline: float
    # Whether a bridge may have it, and whether the broker has said that none was there.
    handed_over: bool = False
    unheard: bool = False

    def expiry(self) -> int:
        """What is left as Message Expiry: whole seconds, and at least one, since 0 is none."""
        return max(1, int(self._seconds_left() + _ROUNDING))

    def payload(self, *, version5: bool, reply_topic: str) -> bytes:
        """The fields with the reply topic, and the deadline where MQTT has no property for it.

        On MQTT 5 too, the reply topic is there for a bridge that is connected by 3.1.1.
        On MQTT 5 the deadline goes as Message Expiry, which does not depend on the clocks of two
        machines. But it counts whole seconds, so that less than one goes as `expires_at` too.
        """
        sent = {**self.fields, "reply_to": reply_topic}
        left = self._seconds_left()
        # A deadline that the caller named stays.
        if sent.get("expires_at") is None and (not version5 or left + _ROUNDING < 1):
            sent["expires_at"] = time.time() + left
        return orjson.dumps(sent)

    def _seconds_left(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()


class Exchange:
    """Asks over one connection, any number of questions at a time."""

    def __init__(self, connection: Connection, replies: Replies) -> None:
        self._connection = connection
        self._replies = replies

    async def ask(self, question: Question) -> JsonObject:
        """The reply's whole body, whatever its code.

        An answer that is worth another try at once (`RETRIES`) is returned when time has run out.
        Raises NotConnected, Unheard, NoReply or CallError, see `BridgeClient.call`, and Refused
        if the broker takes no packet of that size.
        """
        loop = asyncio.get_running_loop()
        for pause in pauses(0.1, 1.0):
            body = await self._reply_to(question)
            automatic = RETRIES.get(str(body.get("error"))) == "automatic"
            if not automatic or loop.time() + pause >= question.deadline:
                return body
            await asyncio.sleep(pause)
        raise AssertionError("pauses never end")

    async def _reply_to(self, question: Question) -> JsonObject:
        with self._replies.expected(question.request_id) as expected:
            try:
                async with asyncio.timeout_at(question.deadline):
                    await self._send_until_answered(question, expected)
            except TimeoutError:
                if not expected.reply.done():
                    raise self._out_of_time(question) from None
            return expected.reply.result()

    async def _send_until_answered(self, question: Question, expected: Expected) -> None:
        for pause in pauses(0.1, 1.0):
            link = await self._connection.link()
            if link is None:
                raise self._out_of_time(question)
            reason = await self._attempt(link, question, expected)
            if expected.reply.done():
                return
            if reason is not None:
                self._check_worth_another_try(reason, question)
                await asyncio.sleep(pause)

    async def _attempt(self, link: Link, question: Question, expected: Expected) -> int | None:
        """Send the question once, and wait until the reply is there or can no longer come.

        Returns the reason code of the PUBACK if that says that no bridge has heard it.
        """
        reply, may_be_known = expected.reply, question.handed_over
        try:
            acknowledged = self._publish(link, question, expected.correlation)
        except LinkError:
            return None
        question.handed_over = True
        try:
            await asyncio.wait((acknowledged, reply), return_when=asyncio.FIRST_COMPLETED)
            if reply.done():
                return None
            reason = acknowledged.result()
            if reason:
                question.handed_over = may_be_known
                return reason
            await asyncio.wait((reply, link.lost), return_when=asyncio.FIRST_COMPLETED)
        except NotSentError:
            question.handed_over = may_be_known
            return None
        except LinkError:
            return None
        finally:
            # If it has not left yet, it never does.
            acknowledged.cancel()
        return None

    def _publish(self, link: Link, question: Question, correlation: bytes) -> asyncio.Future[int]:
        reply_topic = self._connection.reply_topic
        payload = question.payload(version5=link.version5, reply_topic=reply_topic)
        properties = packets.properties(
            expiry=question.expiry(),
            content_type=_JSON,
            response_topic=reply_topic.encode(),
            correlation=correlation,
        )
        try:
            acknowledged = link.publish(question.topic, payload, qos=1, properties=properties)
        except PayloadTooLarge as error:
            body = {"code": error.code, "error": error.error, "detail": error.detail("en")}
            raise Refused(body, question.request_id) from None
        assert acknowledged is not None
        acknowledged.add_done_callback(_retrieve)
        return acknowledged

    def _check_worth_another_try(self, reason: int, question: Question) -> None:
        """Raise Unheard if nobody has heard the request, nor will the next try be heard."""
        if reason != _NO_MATCHING_SUBSCRIBERS:
            raise Unheard(
                f"the broker refused the request (reason code 0x{reason:02X}) and nothing was "
                f"executed; may this user publish to {question.topic}?",
                question.request_id,
            )
        question.unheard = True
        if not (question.handed_over or self._connection.is_settling):
            raise _unheard(question)

    def _out_of_time(self, question: Question) -> CallError:
        if question.handed_over:
            return NoReply(
                f"no reply to {question.topic} came in time; a command may have been executed: "
                f"ask again with the id {question.request_id} and it is not executed twice",
                question.request_id,
            )
        if question.unheard:
            return _unheard(question)
        return self._connection.not_connected(question.request_id)


def _unheard(question: Question) -> Unheard:
    return Unheard(
        f"nobody is subscribed to {question.topic} and nothing was executed; check that the bridge "
        "runs on this broker, with the same topic prefix",
        question.request_id,
    )


def _retrieve(acknowledged: asyncio.Future[int]) -> None:
    # If the reply came first, nobody awaits this error, and asyncio would log it.
    if not acknowledged.cancelled():
        acknowledged.exception()
