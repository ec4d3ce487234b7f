"""Ask the bridge over MQTT: for plugin authors, and for `run.py call`.

    async with BridgeClient("mqtt://user:password@localhost:1883") as bridge:
        reading = await bridge.sensor_data(device_uuid, "温度")

One connection, any number of requests at a time, each with an id and a deadline. All that can go
wrong is a `CallError`; `errors.py` draws the tree. `requester.py` has the operations, and
`exchange.py` tells a request's way.

It needs MQTT 5 (section 4.10 of the standard: request and response), and no database package.
"""

from .errors import RETRIES, CallError, NoReply, NotConnected, Refused, Retry, Unheard
from .requester import BridgeClient

__all__ = [
    "RETRIES",
    "BridgeClient",
    "CallError",
    "NoReply",
    "NotConnected",
    "Refused",
    "Retry",
    "Unheard",
]
