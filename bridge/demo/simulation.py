"""What a board is made of: sensors whose values wander, ports that follow commands."""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from ..devices.models import JsonObject
from ..errors import Text

_LIT, _DARK = "●", "○"
_CLOSED, _OPEN = "■", "□"
_GAUGE_CELLS = 10


@dataclass(frozen=True, slots=True)
class Sensor:
    """A sensor: its type as the platform writes it, what people call its fields, and a report."""

    type: str
    fields: Mapping[str, Text]
    # What it measures now, a little later than the last time.
    report: Callable[[], JsonObject]


def _drift(start: float, least: float, most: float, step: float) -> Iterator[float]:
    """A value that wanders slowly between two bounds."""
    value = start
    while True:
        value = min(most, max(least, value + random.uniform(-step, step)))  # noqa: S311  a mere play
        yield value


def dht11() -> Sensor:
    temperature, humidity = _drift(25.4, 18, 32, 0.2), _drift(56, 35, 80, 0.8)
    return Sensor(
        "DHT11",
        {
            "temperature": Text("室内温度", "room temperature"),
            "humidity": Text("室内湿度", "room humidity"),
        },
        lambda: {"temperature": round(next(temperature), 1), "humidity": round(next(humidity))},
    )


def rain_sensor() -> Sensor:
    """Dry for most of the time."""
    drift = _drift(-2, -6, 6, 0.8)

    def report() -> JsonObject:
        level = max(0, round(next(drift)))
        return {"rain": level > 0, "rain_level": level}

    fields = {
        "rain": Text("窗外雨水", "rain outside"),
        "rain_level": Text("窗外雨量", "amount of rain outside"),
    }
    return Sensor("RAIN_SENSOR", fields, report)


def ds18b20() -> Sensor:
    temperature = _drift(21.5, 12, 30, 0.1)
    fields = {"temperature": Text("水温", "water temperature")}
    return Sensor("DS18B20", fields, lambda: {"temperature": round(next(temperature), 2)})


class NotUnderstoodError(Exception):
    """The firmware has no such command, or the board no such port."""


class Ports:
    """The ports of a board, everything off; takes the firmware's commands (docs/contract.md)."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.state: dict[str, list[int]] = {kind: [0] * count for kind, count in counts.items()}

    def take(self, command: object) -> str:
        """Execute a command; one line that tells what happened.

        Raises NotUnderstoodError if nothing happened.
        """
        match command:
            case {
                "cmd": "led" | "relay" as kind,
                "device_id": int(number),
                "action": "on" | "off" as action,
            }:
                return self._switch(kind, number, action)
            case {"cmd": "servo", "device_id": int(number), "angle": int(angle)}:
                self._set("servo", number, angle)
                return f"servo {number} {angle}°  {_gauge(angle / 180)}"
            case {
                "cmd": "pwm",
                "channel": int(number),
                "frequency": int(hertz),
                "duty_cycle": int(percent),
            }:
                self._set("pwm", number, percent)
                return f"pwm {number} {percent}%  {_gauge(percent / 100)}  {hertz} Hz"
            case {
                "cmd": "preset",
                "preset_type": str(preset),
                "device_type": str(kind),
                "device_id": int(number),
                "parameters": {**parameters},
            }:
                listed = "".join(f" {name}={value}" for name, value in parameters.items())
                return f"preset {preset} {kind} {number or 'all'} {listed}"
        raise NotUnderstoodError

    def _switch(self, kind: str, number: int, action: str) -> str:
        every = range(1, len(self.state.get(kind, ())) + 1)
        if not every:
            raise NotUnderstoodError
        for each in every if number == 0 else (number,):
            self._set(kind, each, int(action == "on"))
        on, off = (_LIT, _DARK) if kind == "led" else (_CLOSED, _OPEN)
        row = "".join(on if lit else off for lit in self.state[kind])
        return f"{kind} {number or 'all'} {action:<3} {row}"

    def _set(self, kind: str, number: int, value: int) -> None:
        if not 1 <= number <= len(self.state.get(kind, ())):
            raise NotUnderstoodError
        self.state[kind][number - 1] = value


def _gauge(share: float) -> str:
    filled = round(min(1.0, max(0.0, share)) * _GAUGE_CELLS)
    return "█" * filled + "░" * (_GAUGE_CELLS - filled)
