"""What a board is made of: sensors whose values wander, ports that do as they are told."""

import random
from collections.abc import Mapping
from typing import Protocol

from ..devices.models import JsonObject
from ..errors import Text

_LIT, _DARK = "●", "○"
_CLOSED, _OPEN = "■", "□"
_GAUGE_CELLS = 10


class Sensor(Protocol):
    """A sensor: its type as the platform writes it, what people call its fields, and a report."""

    type: str
    fields: Mapping[str, Text]

    def report(self) -> JsonObject: ...


class _Drift:
    """A value that wanders slowly between two bounds."""

    def __init__(self, start: float, least: float, most: float, step: float) -> None:
        self._value, self._least, self._most, self._step = start, least, most, step

    def next(self) -> float:
        moved = self._value + random.uniform(-self._step, self._step)  # noqa: S311  a mere play
        self._value = min(self._most, max(self._least, moved))
        return self._value


class Dht11:
    type = "DHT11"
    fields: Mapping[str, Text] = {
        "temperature": Text("室内温度", "room temperature"),
        "humidity": Text("室内湿度", "room humidity"),
    }

    def __init__(self) -> None:
        self._temperature = _Drift(25.4, 18, 32, 0.2)
        self._humidity = _Drift(56, 35, 80, 0.8)

    def report(self) -> JsonObject:
        return {
            "temperature": round(self._temperature.next(), 1),
            "humidity": round(self._humidity.next()),
        }


class RainSensor:
    type = "RAIN_SENSOR"
    fields: Mapping[str, Text] = {
        "rain": Text("窗外雨水", "rain outside"),
        "rain_level": Text("窗外雨量", "amount of rain outside"),
    }

    def __init__(self) -> None:
        self._level = _Drift(-2, -6, 6, 0.8)

    def report(self) -> JsonObject:
        level = max(0, round(self._level.next()))
        return {"rain": level > 0, "rain_level": level}


class Ds18b20:
    type = "DS18B20"
    fields: Mapping[str, Text] = {"temperature": Text("水温", "water temperature")}

    def __init__(self) -> None:
        self._temperature = _Drift(21.5, 12, 30, 0.1)

    def report(self) -> JsonObject:
        return {"temperature": round(self._temperature.next(), 2)}


class NotUnderstoodError(Exception):
    """The firmware has no such command, or the board no such port."""


class Ports:
    """The ports of a board, everything off; takes the firmware's commands (docs/contract.md)."""

    def __init__(self, counts: Mapping[str, int]) -> None:
        self.state: dict[str, list[int]] = {kind: [0] * count for kind, count in counts.items()}

    def take(self, command: object) -> str:
        """Execute a command, or raise NotUnderstoodError; one line that tells what happened."""
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
                given = "".join(f" {name}={value}" for name, value in parameters.items())
                return f"preset {preset} {kind} {number or 'all'} {given}"
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
