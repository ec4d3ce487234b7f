"""Random JSON in all configuration columns and random text in all text columns, round by round.

`ODD_ROUNDS=300` is the long form, `ODD_SEED` repeats the rounds of a failure.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.contract.cases import on_port, servo
from tests.contract.conftest import Place
from tests.lab.platform import BOARD_A, BOARD_B, BOARD_D, DEVICE_COLUMNS, Platform

ROUNDS = int(os.environ.get("ODD_ROUNDS", "20"))
SEED = int(os.environ.get("ODD_SEED", str(random.SystemRandom().randrange(10**9))))

SCRAPS = [
    "", " ", "\u200b", "led", "LED", "relay", "RELAY", "servo", "pwm", "on", "off", "false", "0",
    "1", "1.0", "温度", "客厅灯", "temperature", "rain", "sequence", "blink", "\U0001f600",
    "\x00", "'", "\\", "%s", "{0}", "</script>", "NaN", "1e999", "-1", "é", "İ", "ß", "x" * 40,
    "\u202e", "\ufeff",
]  # fmt: skip
NUMBERS = [0, 1, 2, 3, -1, 1.0, 0.5, 2**53, 2**64, 10**30, 1e300, -0.0, True, False, None]
KEYS = [
    "type", "device_id", "enabled", "name", "alias", "custom_name", "led_1", "relay_1", "servo_1",
    "preset_commands", "preset_key", "preset_type", "device_type", "command", "cmd", "action",
    "value", "steps", "delay", "parameters", "channel", "duty", "angle", "data_field", "unit",
    "frequency", "DHT11_temperature", "RAIN_SENSOR",
]  # fmt: skip
UNREADABLE = ["[]", "[1]", "5", "{", '"{}"', "true", '{"a":1e999}', '{"a":' * 200 + "1" + "}" * 200]
OFF = {"type": "RELAY", "device_id": 2, "enabled": False}
# What no round may be answered with, whatever is stored.
WRONG = {500, 503, 504}


class Chance(random.Random):
    """Random values such as years of pages leave behind."""

    def text(self) -> str:
        return "".join(self.choices(SCRAPS, k=self.randint(1, 2)))

    def value(self, depth: int = 0) -> Any:
        kind = self.random()
        if depth > 3 or kind < 0.35:
            return self.choice([self.choice(NUMBERS), self.choice(SCRAPS), self.text()])
        if kind < 0.5:
            return [self.value(depth + 1) for _ in range(self.randint(0, 4))]
        return {
            self.choice(KEYS) if self.random() < 0.8 else self.text(): self.value(depth + 1)
            for _ in range(self.randint(0, 6))
        }

    def object(self) -> dict[str, Any]:
        value = self.value()
        return value if isinstance(value, dict) else {"led_1": value}

    def port(self) -> dict[str, Any]:
        return {
            "type": self.choice(["led", "LED", "Relay", "servo", "PWM", self.value()]),
            "device_id": self.choice([1, "1", 1.0, 3, self.choice(NUMBERS)]),
            "enabled": self.choice([True, False, 0, "false", "1", None]),
            self.choice(["name", "alias", "custom_name"]): self.text(),
        }

    def preset(self) -> dict[str, Any]:
        command = {
            "cmd": self.choice(["led", "relay", "RELAY", "servo", "pwm", "preset", self.text()]),
            self.choice(["device_id", "channel"]): self.choice([1, 2, 0, "2", 2.0, self.value()]),
            "device_type": self.choice(["led", "relay", None, self.value()]),
            self.choice(["action", "value", "angle", "duty"]): self.choice(
                ["on", 1, 0, self.value()]
            ),
        }
        shape = self.choice(["command", "steps", "page", "any"])
        preset = {"preset_key": self.choice([self.text(), None]), "name": self.text()}
        if shape == "command":
            return {**preset, "command": command}
        if shape == "steps":
            steps = [{"command": command, "delay": self.choice([0, None, 0.01])}]
            return {**preset, "type": "sequence", "steps": steps}
        if shape == "page":
            return {**preset, **command, "preset_type": "blink", "parameters": self.object()}
        return {**preset, **self.object()}


class Round:
    """What one round stores, and what may be concluded from it."""

    def __init__(self, number: int) -> None:
        chance = self.chance = Chance(SEED + number)
        self.unreadable = chance.random() < 0.25
        ports: dict[str, Any] = {f"p{n}": chance.port() for n in range(chance.randint(0, 5))}
        ports[chance.choice(["off", "relay_2", "x y"])] = OFF
        own = {chance.choice(["p0", "p1", "led_1", "q"]): chance.value() for _ in range(3)}
        presets = [chance.preset() for _ in range(6)]
        self.columns = {
            "control_ports": chance.choice(UNREADABLE) if self.unreadable else dumped(ports),
            "device_control_config": dumped(own),
            "device_sensor_config": chance.choice([*UNREADABLE, dumped(chance.object())]),
            "sensor_types": chance.choice([*UNREADABLE, dumped(chance.object())]),
            "device_settings": dumped({"preset_commands": presets}),
        }
        if chance.random() < 0.2:
            self.columns["device_settings"] = chance.choice([*UNREADABLE, dumped(chance.object())])
        names = [one["preset_key"] or one["name"] for one in presets]
        self.requests = [
            ("device", {}),
            *(
                ("sensor-data", {"sensor": chance.choice([chance.text(), "温度", "rain"])})
                for _ in range(3)
            ),
            *(("control", on_port("relay", port_id)) for port_id in (0, 1, 2, 3)),
            *(("control", on_port("led", port_id)) for port_id in (0, 1)),
            *(("control", {"port": chance.text(), "action": "on"}) for _ in range(3)),
            *(("preset", {"preset_key": str(name)[:100]}) for name in names),
        ]

    def store(self, platform: Platform, place: Place) -> None:
        assert {*DEVICE_COLUMNS} < {*self.columns}
        for column, text in self.columns.items():
            platform.set_stored(BOARD_A, column, text)
        text = self.chance.text
        platform.update_device(
            BOARD_A, name=text(), room=text(), group_name=text(), floor=text()[:20], location=text()
        )
        place.database.execute("DELETE FROM device_sensors WHERE device_uuid = %s", BOARD_A)
        for number in range(4):
            name = self.chance.choice([f"{text()}{number}"[:50], "temperature"])
            platform.report(BOARD_A, name, text(), unit=text()[:20], sensor_type=text()[:50])


def dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


@pytest.fixture
def platform(place: Place) -> Iterator[Platform]:
    yield place.platform


async def test_random_data_harms_no_neighbour_and_switches_nothing_that_is_disabled(
    place,
    platform,
    connect_caller,
    board,
):
    device = await board(BOARD_A, broker=place.broker)
    await board(BOARD_D, broker=place.broker)
    callers = [
        await connect_caller(transport, of=place.bridge, broker=place.broker)
        for transport in ("http", "mqtt5")
    ]
    neighbour = {"operation": "sensor-data", "device_uuid": BOARD_B, "sensor": "温度"}
    door = {"device_uuid": BOARD_D, "port": "前门", "action": "on"}
    for number in range(ROUNDS):
        this = Round(number)
        await asyncio.to_thread(this.store, platform, place)
        for call in callers:
            odd = [(name, {"device_uuid": BOARD_A, **fields}) for name, fields in this.requests]
            items = [
                {"operation": name, **fields}
                for name, fields in odd
                if name in ("sensor-data", "device")
            ]
            bodies = await asyncio.gather(
                *(call.ask(name, fields) for name, fields in odd),
                call.ask("batch", {"requests": [neighbour, *items, neighbour]}),
                *(call.ask("sensor-data", neighbour) for _ in range(5)),
                call.ask("control", door),
            )
            told = f"seed {SEED}, round {number}, {call.transport}"
            *answers, batch = bodies[: len(odd) + 1]
            for (name, fields), body in zip(odd, answers, strict=True):
                assert body["code"] not in WRONG, (told, name, fields, body, this.columns)
            results = batch["data"]["results"]
            assert not WRONG.intersection(one["code"] for one in results), (told, results)
            healthy = [results[0], results[-1], *bodies[len(odd) + 1 : -1]]
            assert [one["data"]["value"] for one in healthy] == [23.8] * 7, told
            assert bodies[-1]["code"] == 200, told
            check_commands(device, this, told)
    await check_the_board_still_hears(place, platform, callers[0], device)


def check_commands(device, this: Round, told: str) -> None:
    """Nothing that is disabled was commanded; nothing at all where that can't be known."""
    for sent in device.commands:
        command = sent.json
        assert not this.unreadable, (told, command)
        ids = [command.get(name) for name in ("device_id", "channel")]
        kinds = {str(command.get(name)).lower() for name in ("cmd", "device_type")}
        assert not ("relay" in kinds and {0, 2}.intersection(filter(is_number, ids))), (
            told, command, this.columns,
        )  # fmt: skip
    device.commands.clear()


def is_number(value: object) -> bool:
    return isinstance(value, int | float)


async def check_the_board_still_hears(place, platform, call, device) -> None:
    """The last round's commands have all arrived: the next one, of ours, comes after them."""
    for column in ("control_ports", "device_control_config"):
        platform.set_stored(BOARD_A, column, None)
    last = {"device_uuid": BOARD_A, **on_port("servo", 1, "set", value=77)}
    assert (await call.ask("control", last))["code"] == 200
    while (await device.next_command()).json != servo(1, 77):
        pass
