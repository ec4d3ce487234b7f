"""Simulated ESP32 boards on the broker: they report, take commands and show them."""

import asyncio

import orjson

from ..link import Link, packets
from ..observability.logs import printable
from .connection import stay_connected
from .devices import Device
from .simulation import NotUnderstoodError, Ports
from .terminal import Terminal

_REPORT_SECONDS = 2.0


class Board:
    """The board of one device; each command appears as a line on the terminal."""

    def __init__(self, device: Device, terminal: Terminal) -> None:
        self._device = device
        self._terminal = terminal
        self._ports = Ports(device.ports)

    async def run(self, port: int) -> None:
        """Live on the broker at that port, until cancelled.

        It reports when it has subscribed: whoever has heard of it can command it.
        """
        await stay_connected(
            port,
            self._device.uuid,
            [self._topic("control")],
            on_message=self._obey,
            live=self._report,
        )

    async def _report(self, link: Link) -> None:
        while not link.lost.done():
            for sensor in self._device.sensors:
                report = {"sensor": sensor.type, **sensor.report()}
                link.publish(self._topic("data"), orjson.dumps(report), qos=0)
            link.publish(self._topic("heartbeat"), b"{}", qos=0)
            await asyncio.wait((link.lost,), timeout=_REPORT_SECONDS)

    def _obey(self, link: Link, message: packets.Message) -> None:
        self._terminal.event(self._device.name, self._take(message.payload))
        link.publish(self._topic("status"), orjson.dumps(self._ports.state), qos=0)

    def _take(self, payload: bytes) -> str:
        try:
            return self._ports.take(orjson.loads(payload))
        except (NotUnderstoodError, orjson.JSONDecodeError):
            return f"? {printable(payload.decode(errors='replace'))}"

    def _topic(self, last: str) -> str:
        return f"devices/{self._device.uuid}/{last}"
