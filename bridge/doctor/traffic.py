"""What the broker lets through once we are in: requests, replies, commands, and how fast."""

import asyncio
import contextlib
import statistics
import time
from typing import Literal

import aiomqtt
import orjson

from ..errors import Text
from ..link import REFUSED_FROM, Link, LinkError, packets
from ..settings import Settings
from .broker import connected, reason_given
from .findings import Advice, Examination, Finding, failed, note, ok

# Of a device that does not exist.
_CONTROL_TOPIC = "devices/doctor-check/control"
_NO_SUBSCRIBERS = 0x10
# Nagle's algorithm waits for a delayed acknowledgement, which on Linux takes 40 ms.
_NAGLE_SECONDS = 0.02
_SLOW_SECONDS = 0.02
_ROUND_TRIPS = 7
_DELIVERY_SECONDS = 1.5
_RETAINED_SECONDS = 0.3


async def publish(link: Link, topic: str, payload: bytes = b"{}") -> int:
    """Publish what expires after a second; the PUBACK's reason code.

    Raises LinkError if the broker closes the connection, as some do instead of refusing.
    """
    acknowledged = link.publish(topic, payload, qos=1, properties=packets.properties(expiry=1))
    assert acknowledged is not None
    return await acknowledged


def _topic(examination: Examination, kind: Literal["reply", "status"]) -> str:
    return f"{examination.settings.mqtt_topic_prefix}/{kind}/{examination.name}"


def acl_rules(settings: Settings, rule: str) -> tuple[Advice, ...]:
    user = (f"user {settings.mqtt_username}",) if settings.mqtt_username else ()
    return (
        Text("ACL（示例：deploy/mosquitto/acl）：", "ACL (sample: deploy/mosquitto/acl):"),
        *user,
        rule,
    )


async def _may_publish(examination: Examination, topic: str, rule: str) -> Finding:
    settings = examination.settings
    try:
        async with connected(examination) as link:
            reason = await publish(link, topic)
            refusal = f"0x{reason:02X}" if reason >= REFUSED_FROM else None
    except LinkError as error:
        refusal = reason_given(error)
    if refusal is not None:
        return failed(
            f"不能发布到 {topic}：{refusal}",
            f"we may not publish to {topic}: {refusal}",
            *acl_rules(settings, rule),
        )
    if settings.mqtt_protocol == "3.1.1":
        return note(
            f"已发布到 {topic}，但 MQTT 3.1.1 看不出是否被拒绝",
            f"published to {topic}, but MQTT 3.1.1 does not tell a refusal",
            *acl_rules(settings, rule),
        )
    return ok(f"可以发布到 {topic}", f"we may publish to {topic}")


async def commands(examination: Examination) -> Finding:
    return await _may_publish(examination, _CONTROL_TOPIC, "topic write devices/+/control")


async def replies(examination: Examination) -> Finding:
    prefix = examination.settings.mqtt_topic_prefix
    rule = f"topic write {prefix}/reply/#"
    return await _may_publish(examination, _topic(examination, "reply"), rule)


async def presence(examination: Examination) -> Finding:
    """Whether the broker takes our will and our presence.

    The will is on the bridge's own topic, and never leaves. What is published is not: whoever
    watches that topic would believe what it reads.
    """
    settings = examination.settings
    prefix = settings.mqtt_topic_prefix
    rule = f"topic write {prefix}/status/+"
    topic = f"{prefix}/status/{settings.instance}"
    try:
        async with connected(examination, will=aiomqtt.Will(topic, b"", qos=1)):
            pass
    except LinkError as error:
        reason = reason_given(error)
        return failed(
            f"服务器拒绝带有遗嘱（{topic}）的登录：{reason}",
            f"the broker refuses a login with our will on {topic}: {reason}",
            *acl_rules(settings, rule),
        )
    finding = await _may_publish(examination, _topic(examination, "status"), rule)
    if finding.level != "failed":
        return finding
    own = f"{prefix}/status/{settings.instance}"
    enough = Text(f"只允许 {own} 就够了", f"it is enough to allow {own}")
    return note(finding.says.zh, finding.says.en, *finding.advice, enough)


async def instance(examination: Examination) -> Finding:
    """Whether a bridge is online under our name, as far as we may read its presence."""
    settings = examination.settings
    name, workers = settings.instance, settings.workers
    names = [name] if workers == 1 else [f"{name}-{number}" for number in range(1, workers + 1)]
    online = asyncio.Event()

    def hear(message: packets.Message) -> None:
        if _is_online(message.payload):
            online.set()

    async with connected(examination, hear) as link:
        # `Link.subscribe` asks for no stored messages, which are needed here.
        await link._client.subscribe(
            [(f"{settings.mqtt_topic_prefix}/status/{name}", 1) for name in names]
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RETAINED_SECONDS):
                await online.wait()
    if not online.is_set():
        return ok(f"没有看到在线的 {name}", f"no {name} is seen online")
    return note(
        f"{name} 已经在线",
        f"{name} is online already",
        Text(
            "若不是你在运行的那个：换一个 MQTT_INSTANCE",
            "if it is not the bridge that you run, set another MQTT_INSTANCE",
        ),
    )


def _is_online(presence: bytes) -> bool:
    try:
        state = orjson.loads(presence)
    except orjson.JSONDecodeError:
        return False
    return isinstance(state, dict) and state.get("status") == "online"


async def speed(examination: Examination) -> Finding:
    """What a QoS 1 round trip takes, and whether Nagle's algorithm at the broker prolongs it.

    One message at a time never shows that: its PUBACK leaves at once, with nothing unacknowledged
    before it. Of two sent together, the second PUBACK waits until our machine has acknowledged the
    first, and TCP delays that.
    """
    topic = _topic(examination, "reply")
    async with connected(examination) as link:
        alone = statistics.median([await _round_trip(link, topic, 1) for _ in range(_ROUND_TRIPS)])
        paired = statistics.median([await _round_trip(link, topic, 2) for _ in range(_ROUND_TRIPS)])
    took = f"{alone * 1000:.1f} ms"
    if paired - alone > _NAGLE_SECONDS:
        wait = f"{(paired - alone) * 1000:.0f} ms"
        return note(
            f"QoS 1 往返 {took}，但两条接连时多等 {wait}：服务器的 Nagle 算法",
            f"QoS 1 round trip {took}, and {wait} more for two at once: Nagle at the broker",
            Text(
                "如果是 Mosquitto，加入 mosquitto.conf，然后重启：",
                "with Mosquitto, add this to mosquitto.conf, then restart it:",
            ),
            "set_tcp_nodelay true",
        )
    if alone > _SLOW_SECONDS:
        return note(
            f"QoS 1 往返 {took}：每条命令至少等这么久",
            f"QoS 1 round trip {took}: every command waits for so long at least",
            Text(
                "服务器很远则正常；否则它过载了",
                "normal if the broker is far away; otherwise it is overloaded",
            ),
        )
    return ok(f"QoS 1 往返 {took}", f"QoS 1 round trip {took}")


async def _round_trip(link: Link, topic: str, count: int) -> float:
    """The seconds until `count` messages, sent together, are all acknowledged."""
    # The loop's clock may stand still for as long as a turn takes.
    started = time.perf_counter()
    await asyncio.gather(*(publish(link, topic) for _ in range(count)))
    return time.perf_counter() - started


async def unreachable_devices(examination: Examination) -> Finding:
    """Whether the broker says that no one hears a command (then we answer `device_unreachable`)."""
    if examination.settings.mqtt_protocol == "3.1.1":
        return note(
            "MQTT 3.1.1 看不出命令有没有设备接收",
            "MQTT 3.1.1 does not tell whether any device gets a command",
        )
    async with connected(examination) as link:
        control = await publish(link, _CONTROL_TOPIC)
        reply = await publish(link, _topic(examination, "reply"))
    if control == _NO_SUBSCRIBERS:
        return ok("没有设备接收的命令会被发现", "a command that no device gets is noticed")
    if reply == _NO_SUBSCRIBERS:
        return note(
            "有客户端订阅了所有设备的命令，因此看不出设备自己有没有接收",
            "some client subscribes to all devices' commands, which hides a device that does not",
            Text(
                "让它订阅得窄一些（不用 devices/#）",
                "let it subscribe to fewer topics than devices/#",
            ),
        )
    return note(
        "服务器不说明命令有没有设备接收",
        "the broker does not tell whether any device gets a command",
    )
