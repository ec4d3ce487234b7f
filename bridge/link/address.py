"""Where a broker is, and how a connection to it is secured."""

import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from ..errors import UnusableFile

if TYPE_CHECKING:
    # The client names its broker by a URL, without settings.
    from ..settings import Settings


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    host: str
    port: int = 1883
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = None
    version5: bool = True
    # The largest packet that we take (bytes).
    largest_packet: int = 1024 * 1024

    @classmethod
    def of(cls, settings: "Settings") -> Self:
        """The broker of the `MQTT_` settings; raises OSError as `tls_context` does."""
        return cls(
            settings.mqtt_broker,
            settings.mqtt_port,
            settings.mqtt_username,
            settings.mqtt_password.get_secret_value(),
            tls_context(settings),
            settings.mqtt_protocol == "5",
            max(1024 * 1024, 4 * settings.max_payload),
        )


def tls_context(settings: "Settings") -> ssl.SSLContext | None:
    """The context for `MQTT_TLS`, which always verifies; None for plain TCP.

    The files are read for each connection, so that renewed certificates are used.

    Raises:
        UnusableFile: a file can't be used (an OSError too); its message names the setting.
    """
    if not (settings.mqtt_tls or settings.mqtt_tls_ca or settings.mqtt_tls_cert):
        return None
    ca, cert, key = (
        None if path is None else str(path)
        for path in (settings.mqtt_tls_ca, settings.mqtt_tls_cert, settings.mqtt_tls_key)
    )
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise UnusableFile(
            f"MQTT_TLS_CA: {ca!r} 中没有 PEM 格式的证书（{error}）",
            f"MQTT_TLS_CA: {ca!r} holds no PEM certificate ({error})",
        ) from None
    if cert is not None:
        try:
            # An explicit password keeps OpenSSL from asking for one at the terminal.
            context.load_cert_chain(cert, key, password="")
        except OSError as error:
            raise UnusableFile(
                f"MQTT_TLS_CERT、MQTT_TLS_KEY: 应为 PEM 格式的证书及其未加密的私钥（{error}）",
                "MQTT_TLS_CERT, MQTT_TLS_KEY: must be a PEM certificate and its unencrypted key "
                f"({error})",
            ) from None
    return context
