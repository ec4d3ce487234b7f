"""The broker: whether it can be reached, is trusted, and lets us in."""

import asyncio
import contextlib
import secrets
import ssl
from collections.abc import AsyncIterator, Callable

import aiomqtt

from ..errors import Text
from ..link import BrokerAddress, Link, LinkError, packets, tls_context
from ..settings import Settings
from .connectivity import certificate_refused, server_reached
from .findings import ANSWER_SECONDS, Advice, Examination, Finding, failed, ok


async def reached(examination: Examination) -> Finding:
    settings = examination.settings
    names = "MQTT_BROKER, MQTT_PORT"
    return await server_reached(settings.mqtt_broker, settings.mqtt_port, names, "mosquitto")


def uses_tls(settings: Settings) -> bool:
    return bool(settings.mqtt_tls or settings.mqtt_tls_ca or settings.mqtt_tls_cert)


async def tls(examination: Examination) -> Finding:
    settings = examination.settings
    host, port = settings.mqtt_broker, settings.mqtt_port
    try:
        context = tls_context(settings)
    except OSError as error:
        names = "MQTT_TLS_CA, MQTT_TLS_CERT, MQTT_TLS_KEY"
        return failed(
            f"证书文件不能用：{error}",
            f"the certificate files can't be used: {error}",
            Text(f"核对 {names}（PEM）", f"check {names} (PEM)"),
        )
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except ssl.SSLCertVerificationError as error:
        return certificate_refused(error, host, "MQTT_TLS_CA")
    except (OSError, EOFError) as error:
        words = str(error) or type(error).__name__
        return failed(
            f"TLS 握手没有完成：{words}",
            f"the TLS handshake came to nothing: {words}",
            Text(
                "那个端口用 TLS 吗？核对 MQTT_PORT，或设 MQTT_TLS=false",
                "does this port use TLS? Check MQTT_PORT, or set MQTT_TLS=false",
            ),
        )
    writer.transport.abort()
    return ok("信任服务器证书", "the server's certificate is trusted")


async def login(examination: Examination) -> Finding:
    settings = examination.settings
    try:
        async with asyncio.timeout(ANSWER_SECONDS), connected(examination):
            user, protocol = settings.mqtt_username, f"MQTT {settings.mqtt_protocol}"
            return ok(f"{user or '匿名'}，{protocol}", f"{user or 'anonymous'}, {protocol}")
    except TimeoutError:
        return failed(
            "接受连接，但没有回应：停住了，或者不是 MQTT",
            "it takes the connection and says nothing: hung, or no MQTT broker at all",
            Text(
                "核对 MQTT_PORT，以及服务器是否在正常运行",
                "check MQTT_PORT, and whether the broker works",
            ),
            *_other_protocol(settings),
        )
    except LinkError as error:
        return _not_let_in(error, settings)


def _not_let_in(error: LinkError, settings: Settings) -> Finding:
    reason = reason_given(error)
    match error.reason:
        case 0x84:
            return failed(
                f"服务器不支持 MQTT {settings.mqtt_protocol}",
                f"the broker does not speak MQTT {settings.mqtt_protocol}",
                *_other_protocol(settings),
            )
        case 0x86 | 0x87 if not settings.mqtt_username:
            return failed(
                f"不允许匿名登录：{reason}",
                f"it lets no one in without a name: {reason}",
                Text("设置 MQTT_USERNAME 和 MQTT_PASSWORD", "set MQTT_USERNAME and MQTT_PASSWORD"),
            )
        case 0x86 | 0x87:
            return failed(
                f"拒绝 {settings.mqtt_username} 登录：{reason}",
                f"it refuses {settings.mqtt_username}: {reason}",
                Text(
                    "核对 MQTT_USERNAME 和 MQTT_PASSWORD；重设：",
                    "check MQTT_USERNAME and MQTT_PASSWORD; to set the password again:",
                ),
                f"sudo mosquitto_passwd /etc/mosquitto/passwd {settings.mqtt_username}",
                "sudo systemctl reload mosquitto",
            )
        case int():
            return failed(f"拒绝登录：{reason}", f"it refuses the login: {reason}")
    if "ALERT" in reason:
        return failed(
            f"要求它信任的客户端证书：{reason}",
            f"it wants a client certificate that it trusts: {reason}",
            Text("设置 MQTT_TLS_CERT 和 MQTT_TLS_KEY", "set MQTT_TLS_CERT and MQTT_TLS_KEY"),
        )
    return _hung_up(reason, settings)


def _hung_up(reason: str, settings: Settings) -> Finding:
    advice: list[Advice] = [
        Text("核对 MQTT_PORT：那里是 MQTT 吗？", "check MQTT_PORT: is that MQTT?"),
        *_other_protocol(settings),
    ]
    if not uses_tls(settings):
        advice.append(
            Text("如果该端口要求 TLS：MQTT_TLS=true", "if the port requires TLS: MQTT_TLS=true")
        )
    elif settings.mqtt_tls_cert is None:
        advice.append(
            Text(
                "如果它要求客户端证书：MQTT_TLS_CERT",
                "if it requires a client certificate: MQTT_TLS_CERT",
            )
        )
    return failed(f"没有回答登录就断开：{reason}", f"it hangs up on our login: {reason}", *advice)


def _other_protocol(settings: Settings) -> tuple[Advice, ...]:
    if settings.mqtt_protocol == "3.1.1":
        return (
            Text("服务器只支持 MQTT 5？", "does the broker support only MQTT 5?"),
            "MQTT_PROTOCOL=5",
        )
    return (
        Text(
            "RabbitMQ 3、NATS、ActiveMQ 5、Aedes、amqtt 等只支持 MQTT 3.1.1：",
            "RabbitMQ 3, NATS, ActiveMQ 5, Aedes, amqtt and old brokers support only MQTT 3.1.1:",
        ),
        "MQTT_PROTOCOL=3.1.1",
    )


def reason_given(error: LinkError) -> str:
    return str(error) if error.reason is None else f"{error} (0x{error.reason:02X})"


@contextlib.asynccontextmanager
async def connected(
    examination: Examination,
    hear: Callable[[packets.Message], None] | None = None,
    will: aiomqtt.Will | None = None,
) -> AsyncIterator[Link]:
    """A connection of the doctor's own, each under another client id.

    Raises LinkError if the broker can't be reached or refuses us.
    """

    def on_message(link: Link, message: packets.Message) -> None:
        if message.qos:
            link.acknowledge(message.packet_id)
        if hear is not None:
            hear(message)

    identifier = f"{examination.settings.instance}-doctor-{secrets.token_hex(4)}"
    address = BrokerAddress.of(examination.settings)
    link = Link(address, identifier=identifier, on_message=on_message, will=will)
    await link.open()
    try:
        yield link
    finally:
        await link.close()
