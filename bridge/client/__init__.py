"""Ask the bridge over MQTT: for plugin authors, and for `run.py call`.

    async with BridgeClient("mqtt://user:password@localhost:1883") as bridge:
        reading = await bridge.sensor_data(device_uuid, "温度")

One connection, any number of requests at a time, each with an id and a deadline. Every failure is
a `CallError`; `errors.py` draws the tree. `requester.py` has the operations, and `exchange.py` the
way of a request.

It speaks MQTT 5 (section 4.10 of the standard: request and response), and MQTT 3.1.1 with brokers
that know nothing newer. It needs no database package.
"""

from ..devices.listing import DeviceList, ListedDevice
from ..devices.models import (
    BatchResult,
    ControlResult,
    DeviceDescription,
    Health,
    OperationInfo,
    PresetResult,
    Reading,
    SequenceResult,
)
from .errors import RETRIES, CallError, NoReply, NotConnected, Refused, Retry, Unheard
from .requester import BridgeClient

__all__ = [
    "RETRIES",
    "BatchResult",
    "BridgeClient",
    "CallError",
    "ControlResult",
    "DeviceDescription",
    "DeviceList",
    "Health",
    "ListedDevice",
    "NoReply",
    "NotConnected",
    "OperationInfo",
    "PresetResult",
    "Reading",
    "Refused",
    "Retry",
    "SequenceResult",
    "Unheard",
]
