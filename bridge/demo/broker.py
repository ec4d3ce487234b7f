"""The embedded broker: iotcore, which is rumqttd in a child process."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iotcore import Broker

from .loopback import LOOPBACK, any_port

# No listener for MQTT 3.1.1: see `front_door`.
_CONFIG = """
id = 0

[router]
id = 0
max_connections = 1000
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 10

[v5.1]
name = "v5"
listen = "{host}:{port}"
next_connection_delay_ms = 1

[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 1048576
max_inflight_count = 100
dynamic_filters = true
"""


class BrokerError(Exception):
    """The broker did not start."""


@contextmanager
def embedded_broker() -> Iterator[int]:
    """A broker for this machine alone, as long as the context lasts; its port, for MQTT 5.

    Starting blocks for a fifth of a second, so that no cancellation comes between the child's start
    and its owner's knowing of it. Raises BrokerError if it does not start.
    """
    # Two demos that start at one time would both find a usual port free, and share one broker.
    port = any_port()
    with tempfile.TemporaryDirectory(prefix="bridge-demo-") as folder:
        config = Path(folder, "broker.toml")
        config.write_text(_CONFIG.format(host=LOOPBACK, port=port))
        broker = Broker(config_path=str(config))
        try:
            # When this returns it listens, and has read its file.
            broker.start()
        except (OSError, RuntimeError) as error:
            raise BrokerError(f"the broker did not start: {error}") from None
    try:
        yield port
    finally:
        broker.stop()
