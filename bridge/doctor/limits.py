"""What the broker says of itself in its CONNACK, and what the bridge needs of that."""

from collections.abc import Iterator

import aiomqtt

from ..errors import Text
from ..link import LinkError
from ..link.limits import BrokerLimits
from ..settings import Settings
from .broker import connected
from .findings import Advice, Examination, Finding, Level, failed, note, ok

# With fewer messages under way than this, one slow device or requester holds up the others.
_ENOUGH_IN_FLIGHT = 100
_SHORT_KEEPALIVE = 5
# What an MQTT 5 reply may add to its payload: topic, correlation data, properties.
_OVERHEAD = 1024


async def limits(examination: Examination) -> Finding:
    """Whether the broker's limits leave the bridge what it needs."""
    settings = examination.settings
    if settings.mqtt_protocol == "3.1.1":
        broker = BrokerLimits(retain=await _takes_retained_will(examination))
    else:
        async with connected(examination) as link:
            broker = link.limits
    findings = list(_shortcomings(broker, settings))
    if not findings and settings.mqtt_protocol == "3.1.1":
        return ok(
            "MQTT 3.1.1 不说明服务器的限制", "MQTT 3.1.1 tells nothing of the broker's limits"
        )
    if not findings:
        return ok("足够", "they suffice")
    level: Level = "failed" if any(one.level == "failed" for one in findings) else "note"
    says = Text(
        "；".join(one.says.zh for one in findings), "; ".join(one.says.en for one in findings)
    )
    return Finding(level, says, tuple(line for one in findings for line in one.advice))


async def _takes_retained_will(examination: Examination) -> bool:
    """Whether the broker takes a login with a retained will, as it takes one without.

    One of MQTT 3.1.1 can't say that it retains nothing; Mosquitto closes the connection.
    """
    will = aiomqtt.Will(f"{examination.settings.mqtt_topic_prefix}/status/doctor", b"", 1, True)
    try:
        async with connected(examination, will=will):
            return True
    except LinkError:
        return False


def _shortcomings(broker: BrokerLimits, settings: Settings) -> Iterator[Finding]:
    mosquitto: tuple[Advice, ...] = (
        Text(
            "如果是 Mosquitto，在 mosquitto.conf 中修改，然后重启：",
            "with Mosquitto, change this in mosquitto.conf, then restart it:",
        ),
    )
    if broker.maximum_qos < 1:
        yield failed("只支持 QoS 0", "the broker supports only QoS 0", *mosquitto, "max_qos 2")
    if not broker.wildcards:
        yield failed("不支持通配符订阅", "it has no subscriptions with wildcards")
    if settings.mqtt_share and not broker.shared_subscriptions:
        yield failed(
            "不支持共享订阅",
            "it has no shared subscriptions",
            Text("在 .env 中把它设为空：", "set this to an empty value in .env:"),
            "MQTT_SHARE=",
        )
    if not broker.retain:
        yield note(
            "不保留消息：没有在线状态",
            "it retains no messages: the bridge's presence is not shown",
            *mosquitto,
            "retain_available true",
        )
    if broker.receive_maximum < _ENOUGH_IN_FLIGHT:
        yield note(
            f"同时只接收 {broker.receive_maximum} 条未确认的消息",
            f"it takes {broker.receive_maximum} unacknowledged messages at a time",
            *mosquitto,
            "max_inflight_messages 1000",
        )
    if (
        broker.maximum_packet is not None
        and broker.maximum_packet < settings.max_payload + _OVERHEAD
    ):
        yield note(
            f"消息最大 {broker.maximum_packet} 字节，更长的回复为 413",
            f"it takes packets of {broker.maximum_packet} bytes; longer replies become 413",
            *mosquitto,
            f"max_packet_size {settings.max_payload + _OVERHEAD}",
        )
    if broker.keepalive is not None and broker.keepalive < _SHORT_KEEPALIVE:
        yield note(
            f"要求 {broker.keepalive} 秒的 keepalive，连接可能常断",
            f"it sets a keepalive of {broker.keepalive} s, so that connections may be lost often",
            *mosquitto,
            "max_keepalive 60",
        )
