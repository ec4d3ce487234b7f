"""Messages from the broker at QoS 1, from their arrival to their acknowledgement, in order."""

import hashlib
from collections import deque
from dataclasses import dataclass

from ..link import Link, packets


@dataclass(slots=True, eq=False)
class Delivery:
    packet_id: int
    qos: int
    received: float
    # The connection on which it is to be acknowledged; None once that is lost.
    link: Link | None
    # None once nobody needs it: what waits for an acknowledgement keeps no payload.
    message: packets.Message | None
    # By which its repetition on a new connection is known; made when it may be needed.
    digest: bytes = b""
    # Nothing more is owed for it but its acknowledgement.
    settled: bool = False

    def forget_message(self) -> None:
        """Keep of the message what its repetition is known by."""
        if self.message is not None:
            self.digest = _digest_of(self.message)
            self.message = None

    def is_repeated_by(self, message: packets.Message) -> bool:
        """Whether the broker sends it again with this message; only a digest is kept now."""
        self.forget_message()
        return message.duplicate and self.digest == _digest_of(message)


class Deliveries:
    """What is to be acknowledged, in order of receipt (MQTT 5.0, section 4.6)."""

    def __init__(self) -> None:
        self._unsettled: deque[Delivery] = deque()
        # Those of a lost connection: the broker sends them again if the session has survived.
        self._orphans: dict[int, Delivery] = {}

    def arrived(self, link: Link, message: packets.Message) -> Delivery | None:
        """The delivery that a message is; None if it repeats one that is in flight."""
        if not message.qos:
            return Delivery(0, 0, message.came, None, message)
        orphan = self._orphans.pop(message.packet_id, None)
        if orphan is not None and orphan.is_repeated_by(message):
            orphan.link = link
            self._unsettled.append(orphan)
            self._acknowledge_settled()
            return None
        delivery = Delivery(message.packet_id, message.qos, message.came, link, message)
        self._unsettled.append(delivery)
        return delivery

    def settle(self, delivery: Delivery) -> None:
        """Nothing more is owed for this one but its acknowledgement; may be said again."""
        if delivery.settled or not delivery.qos:
            return
        delivery.settled = True
        if delivery.link is None or self._unsettled[0] is not delivery:
            # It waits for others, or for its repetition.
            delivery.forget_message()
        self._acknowledge_settled()

    def lost(self) -> None:
        """The connection is gone on which they were to be acknowledged."""
        for delivery in self._unsettled:
            delivery.link = None
            self._orphans[delivery.packet_id] = delivery
        self._unsettled.clear()

    def forgotten(self) -> None:
        """The broker has lost the session, and with it the wish for acknowledgements."""
        self._orphans.clear()

    def _acknowledge_settled(self) -> None:
        while self._unsettled and self._unsettled[0].settled:
            delivery = self._unsettled.popleft()
            if delivery.link is not None:
                delivery.link.acknowledge(delivery.packet_id)


def _digest_of(message: packets.Message) -> bytes:
    parts = (message.topic.encode("utf-8", "surrogateescape"), message.correlation or b"")
    digest = hashlib.blake2b(message.payload, digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()
