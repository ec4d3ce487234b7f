"""Hostile messages on both transports: the bridge stays connected, answers, and serves others."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from urllib.parse import urlsplit

import aiohttp

from tests.chaos.findings import Findings, in_ms
from tests.chaos.load import outcomes
from tests.chaos.messages import (
    KEPT_HTTP,
    HostileHttp,
    HostilePublish,
    ingredients,
    kept_publishes,
    publishes,
    requests,
)
from tests.chaos.site import Site, open_site
from tests.lab.bridge import Bridge
from tests.lab.mqtt import NO_MATCHING_SUBSCRIBERS
from tests.lab.platform import BOARD_B
from tests.lab.raw import Raw
from tests.lab.requester import Requester

# What the bridge tells the broker that it takes (its Maximum Packet Size).
LARGEST_PACKET = 1024 * 1024
READING = {"device_uuid": BOARD_B, "sensor": "temperature"}
_PUBLISHERS = 8
_HTTP_CLIENTS = 24
# Between two pieces of a slow request, and for an answer to what may not be whole.
_PAUSE, _PATIENCE = 0.01, 0.5


async def hostile(
    *, messages: int = 100_000, of_each: int = 1500, seed: int | None = None
) -> Findings:
    """The kept list, then ingredients of the strategies at random, two thirds of it over MQTT.

    ``messages`` is the sum; ``of_each`` ingredient the strategies make so many.
    """
    seed = random.randrange(1_000_000) if seed is None else seed
    rng = random.Random(seed)
    findings = Findings({"seed": seed})
    made = await asyncio.to_thread(ingredients, of_each)
    over_mqtt, over_http = list(kept_publishes()), list(KEPT_HTTP)
    more = max(0, messages - len(over_mqtt) - len(over_http))
    over_mqtt += islice(publishes(made, rng), more * 2 // 3)
    over_http += islice(requests(made, rng), more - more * 2 // 3)
    async with open_site(REQUEST_TIMEOUT="3", LOG_LEVEL="WARNING") as site:
        attack = _Attack(site, findings)
        async with Requester(site.broker) as requester, aiohttp.ClientSession() as http:
            good = asyncio.create_task(attack.ask_in_between(requester, http))
            await asyncio.gather(
                attack.publish(over_mqtt),
                attack.request(over_http),
            )
            attack.over.set()
            await good
        await _judge(site, attack, findings)
    return findings


class _Attack:
    def __init__(self, site: Site, findings: Findings) -> None:
        self._site = site
        self._findings = findings
        self.over = asyncio.Event()
        self.sent: Counter[str] = Counter()
        # Publishes that the broker says it has passed on; only the bridge is subscribed.
        self.accepted = 0
        self.mqtt: Counter[str] = Counter()
        self.http: Counter[str] = Counter()
        self.good: list[float] = []
        # Good ones that found no place: the publishers wait for the broker only, as in a flood.
        self.rejected = 0

    # ---- MQTT -----------------------------------------------------------------------------------

    async def publish(self, messages: list[HostilePublish]) -> None:
        left = iter(messages)
        await asyncio.gather(*(self._publisher(left) for _ in range(_PUBLISHERS)))

    async def _publisher(self, messages: Iterator[HostilePublish]) -> None:
        raw: Raw | None = None
        for message in messages:
            if raw is None or not raw.open:
                raw = await Raw(self._site.broker).connect()
            self.sent["mqtt"] += 1
            try:
                reason = await asyncio.wait_for(
                    raw.publish(
                        message.topic,
                        message.payload,
                        message.properties,
                        retain=message.retain,
                    ),
                    10,
                )
            except ConnectionError:
                self.mqtt["refused by the broker, with the connection"] += 1
                continue
            if reason == 0 and _size(message) > LARGEST_PACKET:
                self.mqtt["larger than the bridge takes, which the broker drops"] += 1
            elif reason == 0:
                self.accepted += 1
                self.mqtt["passed on"] += 1
            elif reason == NO_MATCHING_SUBSCRIBERS:
                self.mqtt["on a topic of nobody's"] += 1
            else:
                self.mqtt[f"refused with 0x{reason:02x}"] += 1
        if raw is not None:
            await raw.close()

    # ---- HTTP -----------------------------------------------------------------------------------

    async def request(self, messages: list[HostileHttp]) -> None:
        left = iter(messages)
        await asyncio.gather(*(self._http_client(left) for _ in range(_HTTP_CLIENTS)))

    async def _http_client(self, messages: Iterator[HostileHttp]) -> None:
        address = urlsplit(self._site.bridges[0].url)
        for message in messages:
            self.sent["http"] += 1
            reader, writer = await asyncio.open_connection(address.hostname, address.port)
            answer = b""
            with contextlib.suppress(OSError, TimeoutError):
                for piece in message.pieces:
                    writer.write(piece)
                    await writer.drain()
                    if len(message.pieces) > 1:
                        await asyncio.sleep(_PAUSE)
                answer = await _first_answer(reader)
            writer.close()
            self._take(message, answer)

    def _take(self, message: HostileHttp, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        status = re.match(rb"HTTP/1\.[01] (\d{3}) ", head)
        if not answer:
            self.http["no answer to what was not whole"] += 1
            return
        if status is None:
            self._findings.broken.append(f"{message.pieces[0][:80]!r} answered {answer[:80]!r}")
            return
        code = status[1].decode()
        self.http[code] += 1
        # 100 Continue says nothing yet; 2xx and 3xx may be pages.
        if code == "500" or (code >= "400" and body and not _is_ours(body)):
            self._findings.broken.append(f"{message.pieces[0][:300]!r} answered {answer[:300]!r}")

    # ---- good ones ------------------------------------------------------------------------------

    async def ask_in_between(self, requester: Requester, http: aiohttp.ClientSession) -> None:
        """Good requests, again and again; each has 5 seconds."""
        url = self._site.bridges[0].url + "/api/sensor-data"
        while not self.over.is_set():
            began = time.monotonic()
            try:
                reply = await requester.ask("sensor-data", READING, timeout=5)
                self.accepted += 1
                async with asyncio.timeout(5), http.get(url, params=READING) as response:
                    codes = reply.code, response.status
            except (TimeoutError, OSError, aiohttp.ClientError) as error:
                self._findings.broken.append(f"a good request was not answered: {error!r}")
                return
            self.good.append((time.monotonic() - began) / 2)
            self.rejected += codes.count(429)
            if not set(codes) <= {200, 429}:
                self._findings.broken.append(f"good requests were answered {codes}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.over.wait(), 0.05)


def _size(message: HostilePublish) -> int:
    return len(message.topic) + len(message.properties) + len(message.payload) + 12


async def _first_answer(reader: asyncio.StreamReader) -> bytes:
    """The first answer, whole; what there is of it when no more comes."""
    answer = b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            while data := await reader.read(65536):
                answer += data
                head, blank, body = answer.partition(b"\r\n\r\n")
                length = re.search(rb"\r\nContent-Length: (\d+)", head, re.IGNORECASE)
                if blank and (length is None or len(body) >= int(length[1])):
                    return answer if length is None else head + blank + body[: int(length[1])]
    return answer


def _is_ours(body: bytes) -> bool:
    try:
        parsed = json.loads(body)
    except ValueError:
        return False
    return isinstance(parsed, dict) and ("error" in parsed or "status" in parsed)


async def _judge(site: Site, attack: _Attack, findings: Findings) -> None:
    bridge = site.bridges[0]
    # The last ones may still be in flight.
    async with asyncio.timeout(15):
        while (metrics := await _metrics(bridge))["in_flight"]:
            await asyncio.sleep(0.1)
    answered, dropped = metrics["answered over mqtt"], metrics["dropped"]
    findings.figures |= {
        "sent": dict(attack.sent),
        "over MQTT": outcomes(attack.mqtt),
        "over HTTP": outcomes(attack.http),
        "accepted over MQTT": attack.accepted,
        "of which answered, and dropped by a rule": (answered, dropped),
        "good requests in between": 2 * len(attack.good),
        "of which answered 429": attack.rejected,
        "the slowest of these": in_ms(max(attack.good, default=0.0)),
    }
    findings.expect(
        attack.rejected < len(attack.good),
        f"{attack.rejected} of {2 * len(attack.good)} good requests in between were rejected",
    )
    findings.expect(metrics["reconnects"] == 0, f"{metrics['reconnects']} reconnects")
    findings.expect(metrics["internal_errors"] == 0, f"{metrics['internal_errors']} answers of 500")
    findings.expect(
        answered + dropped == attack.accepted,
        f"{attack.accepted} accepted, but {answered} answered and {dropped} dropped",
    )
    for word in ("Traceback", "ERROR", "mqtt unavailable"):
        findings.expect(word not in bridge.output, f"{word!r} in the log:\n{bridge.log_tail}")
    findings.expect(bridge.running, "the bridge has ended")


async def _metrics(bridge: Bridge) -> dict[str, int]:
    async with aiohttp.ClientSession() as http, http.get(f"{bridge.url}/metrics") as response:
        text = await response.text()

    def total(pattern: str) -> int:
        found = re.findall(rf"^{pattern} (\S+)$", text, re.MULTILINE)
        return int(sum(map(float, found)))

    return {
        "answered over mqtt": total(r'bridge_requests_total\{[^}]*transport="mqtt"[^}]*\}'),
        "dropped": total(r'bridge_dropped_total\{reason="(?:retained|expired|unanswerable)"\}'),
        "internal_errors": total(r'bridge_requests_total\{[^}]*outcome="internal_error"[^}]*\}'),
        "reconnects": total(r'bridge_reconnects_total\{to="mqtt"\}'),
        "in_flight": total("bridge_in_flight"),
    }
