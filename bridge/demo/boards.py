"""Simulated ESP32 boards on the broker: they report, take commands and show them."""

import asyncio

import aiomqtt
import orjson

from ..logs import printable
from .broker import stay_connected
from .devices import Device
from .simulation import NotUnderstoodError, Ports
from .terminal import Terminal

_REPORT_SECONDS = 2.0


class Board:
    """The board of one device; what it is told appears on the terminal, a line a command."""

    def __init__(self, device: Device, terminal: Terminal) -> None:
        self._device = device
        self._terminal = terminal
        self._ports = Ports(device.ports)

    async def run(self, port: int) -> None:
        """Live on the broker at that port, until cancelled."""
        await stay_connected(port, self._device.uuid, self._live)

    async def _live(self, client: aiomqtt.Client) -> None:
        # Before the first report, so that whoever has heard of the board can command it.
        await client.subscribe(self._topic("control"), qos=1)
        async with asyncio.TaskGroup() as doings:
            doings.create_task(self._report(client), name=f"{self._device.uuid} reports")
            doings.create_task(self._obey(client), name=f"{self._device.uuid} obeys")

    async def _report(self, client: aiomqtt.Client) -> None:
        while True:
            for sensor in self._device.sensors:
                report = {"sensor": sensor.type, **sensor.report()}
                await client.publish(self._topic("data"), orjson.dumps(report))
            await client.publish(self._topic("heartbeat"), b"{}")
            await asyncio.sleep(_REPORT_SECONDS)

    async def _obey(self, client: aiomqtt.Client) -> None:
        async for message in client.messages:
            assert isinstance(message.payload, bytes)
            self._terminal.event(self._device.name, self._take(message.payload))
            await client.publish(self._topic("status"), orjson.dumps(self._ports.state))

    def _take(self, payload: bytes) -> str:
        try:
            return self._ports.take(orjson.loads(payload))
        except (NotUnderstoodError, orjson.JSONDecodeError):
            return f"? {printable(payload.decode(errors='replace'))}"

    def _topic(self, last: str) -> str:
        return f"devices/{self._device.uuid}/{last}"
