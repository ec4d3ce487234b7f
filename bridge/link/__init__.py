"""One connection to the broker: aiomqtt, and all that reaches below its public face.

aiomqtt (with paho under it) connects, logs in, subscribes, pings and disconnects. Requests,
replies and their acknowledgements bypass it, because as its guide shows it, aiomqtt 2.5
acknowledges a request before any work, hides the reason code of a PUBACK, starts a task a message,
and makes three system calls a packet. What is relied on below the public face is listed in
`tests/link/test_connection.py`, which fails if any of it moves.

- paho's socket is a wrapper of ours (`_create_socket`): we read the real one, hand paho the packets
  that are not PUBLISH or PUBACK, and join what is written in one turn of the loop.
- packet ids up to 60000 are ours; paho counts on from there (`_last_mid`).
- paho's callbacks for CONNACK and UNSUBACK are wrapped, for the session, the broker's limits and
  the reason codes.

aiomqtt 3 (pure asyncio, manual acknowledgements) will replace this file.
"""

from .address import BrokerAddress, tls_context
from .connection import REFUSED_FROM, SESSION_TAKEN_OVER, Link
from .outbox import ExpiredBeforeSentError, LinkError, NotSentError

__all__ = [
    "REFUSED_FROM",
    "SESSION_TAKEN_OVER",
    "BrokerAddress",
    "ExpiredBeforeSentError",
    "Link",
    "LinkError",
    "NotSentError",
    "tls_context",
]
