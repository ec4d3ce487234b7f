"""What a broker says of itself in its CONNACK (MQTT 5.0, section 3.2.2.3)."""

from typing import Any, NamedTuple, Self


class BrokerLimits(NamedTuple):
    """Its limits; the defaults are what an absent property means, and all that 3.1.1 tells."""

    receive_maximum: int = 65535
    maximum_qos: int = 2
    maximum_packet: int | None = None
    keepalive: int | None = None
    retain: bool = True
    wildcards: bool = True
    shared_subscriptions: bool = True
    subscription_identifiers: bool = True

    @classmethod
    def of(cls, properties: Any) -> Self:
        """The limits in a CONNACK's properties, as paho has them (MQTT 5.0, section 3.2.2.3).

        None, as on 3.1.1, means the defaults.
        """
        default = cls()
        return cls(
            getattr(properties, "ReceiveMaximum", default.receive_maximum),
            getattr(properties, "MaximumQoS", default.maximum_qos),
            getattr(properties, "MaximumPacketSize", None),
            getattr(properties, "ServerKeepAlive", None),
            bool(getattr(properties, "RetainAvailable", 1)),
            bool(getattr(properties, "WildcardSubscriptionAvailable", 1)),
            bool(getattr(properties, "SharedSubscriptionAvailable", 1)),
            bool(getattr(properties, "SubscriptionIdentifierAvailable", 1)),
        )
