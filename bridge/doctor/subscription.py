"""Whether requests reach us by the subscription that the bridge makes."""

import asyncio
import re
from collections.abc import Sequence

import orjson

from ..core.operations import OPERATIONS
from ..errors import Text
from ..link import REFUSED_FROM, LinkError, packets
from ..settings import Settings
from .broker import connected, reason_given
from .findings import Examination, Finding, failed, note, ok
from .traffic import acl_rules, publish

_DELIVERY_SECONDS = 1.0
_PLAIN = Text(
    "不支持共享订阅的服务器（如 RabbitMQ 3、NATS、ejabberd、ActiveMQ 5、Aedes、amqtt），"
    "在 .env 中设为空：",
    "with a broker without shared subscriptions (RabbitMQ 3, NATS, ejabberd, ActiveMQ 5, Aedes, "
    "amqtt), set it to an empty value in .env:",
)


async def requests(examination: Examination) -> Finding:
    """Whether requests reach us: one of the doctor's own, by the share of the bridge.

    Brokers accept subscriptions that deliver nothing: Mosquitto looks at its ACL when it delivers,
    and some of 3.1.1 take `$share/…` for a literal topic. So only a delivery proves anything. The
    topic is the doctor's own: a bridge of that share loses no request to us. It does get ours, and
    answers that there is no such operation; no one hears it.
    """
    settings = examination.settings
    share = f"$share/{settings.mqtt_share}/" if settings.mqtt_share else ""
    topic = f"{settings.mqtt_topic_prefix}/request/{examination.name}"
    try:
        sent, delivered = await _delivery(examination, share, topic)
        if not sent:
            # The ACL may allow known operations only: then with a share of the doctor's own.
            topic = f"{settings.mqtt_topic_prefix}/request/health"
            own_share = f"$share/{examination.name}/" if share else ""
            sent, delivered = await _delivery(examination, own_share, topic)
        plain = sent and not delivered and (await _delivery(examination, "", topic))[1]
    except LinkError as error:
        return _not_subscribed(error, settings)
    if delivered:
        how = f"MQTT_SHARE={settings.mqtt_share}"
        return ok(f"可以收到请求（{how}）", f"requests arrive ({how})")
    rule = f"topic read {settings.mqtt_topic_prefix}/request/#"
    if plain and share:
        return failed(
            f"接受 {share}… 的订阅，但不按共享订阅投递：收不到任何请求",
            f"the broker takes the subscription to {share}… and delivers nothing by it",
            _PLAIN,
            "MQTT_SHARE=",
        )
    if sent and settings.mqtt_protocol == "5":
        return failed(
            "订阅成功，但请求没有送达",
            "the broker takes the subscription, but delivers no request",
            *acl_rules(settings, rule),
        )
    return note(
        "订阅成功；无法验证请求能否送达，因为我们不能自己发布请求",
        "the broker takes the subscription; that it delivers can't be proved, since we may not "
        "publish a request",
        *acl_rules(settings, rule),
    )


async def _delivery(examination: Examination, share: str, base: str) -> tuple[bool, bool]:
    """Whether the broker takes a request from us, and whether it comes back by a subscription."""
    settings = examination.settings
    payload = orjson.dumps({"request_id": examination.name})
    heard = asyncio.Event()

    def hear(message: packets.Message) -> None:
        if message.payload == payload:
            heard.set()

    async with connected(examination, hear) as link:
        await link.subscribe([f"{share}{base}", f"{share}{base}/+"])
        for topic in _request_topics(base, settings):
            if await publish(link, topic, payload) < REFUSED_FROM:
                try:
                    async with asyncio.timeout(_DELIVERY_SECONDS):
                        await heard.wait()
                except TimeoutError:
                    return True, False
                return True, True
    return False, False


def _request_topics(base: str, settings: Settings) -> Sequence[str]:
    # The ACL may allow requests under the user's own name only.
    user = settings.mqtt_username
    named = user and user not in OPERATIONS and not re.search(r"[+#/\x00-\x1f]", user)
    return [f"{base}/{user}", base] if named else [base]


def _not_subscribed(error: LinkError, settings: Settings) -> Finding:
    reason = reason_given(error)
    advice = acl_rules(settings, f"topic read {settings.mqtt_topic_prefix}/request/#")
    if settings.mqtt_share:
        dynamic = Text(
            "动态安全插件（dynamic security）还须允许订阅：",
            "Mosquitto's dynamic security plugin also needs this right:",
        )
        pattern = f"$share/{settings.mqtt_share}/{settings.mqtt_topic_prefix}/request/#"
        rule = f"mosquitto_ctrl dynsec addRoleACL <role> subscribePattern '{pattern}' allow"
        shared = (_PLAIN, "MQTT_SHARE=")
        lines = [Text(line, line) if isinstance(line, str) else line for line in shared]
        if error.reason == 0x9E:
            return failed(
                f"不能订阅请求：{reason}", f"the bridge can't subscribe: {reason}", *lines
            )
        advice = (*advice, dynamic, rule, *lines)
    return failed(f"不能订阅请求：{reason}", f"we can't subscribe to requests: {reason}", *advice)
