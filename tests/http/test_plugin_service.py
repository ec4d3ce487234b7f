"""The platform's plugin-service, unmodified, finds in the bridge all that it reads.

`PluginService` calls as that program does: httpx, its addresses, time limits and statuses, and it
reads the fields that it reads. What it makes of them is what its own callers see.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.lab.platform import (
    ALIAS,
    BOARD_A,
    BOARD_B,
    BOARD_C,
    BOARD_E,
    MALFORMED_PRESET,
    ORDINARY_PRESET,
    PRESETS,
    SEQUENCE,
    UNKNOWN_BOARD,
)

# What its schema offers to language models; all of them on boards that have such a sensor.
OFFERED_SENSORS = {
    "温度": (BOARD_A, 29.1, "°C"),
    "湿度": (BOARD_A, 61, "%"),
    "雨水": (BOARD_A, 0, ""),
    "雨水级别": (BOARD_A, 3, "级"),
    "DS18B20": (BOARD_B, 23.8, "°C"),
    "DS18B20温度": (BOARD_B, 23.8, "°C"),
    "temperature": (BOARD_A, 29.1, "°C"),
    "humidity": (BOARD_A, 61, "%"),
    "rain": (BOARD_A, 0, ""),
    "rain_level": (BOARD_A, 3, "级"),
}


@dataclass
class PassedOnError(Exception):
    """What it answers to its own caller when we did not answer with 200."""

    status: int
    detail: str


class PluginService:
    """Its calls to the service that we replace."""

    def __init__(self, backend: str, main_backend: str) -> None:
        self._backend = backend
        self._main_backend = main_backend

    async def sensor_data(self, device_uuid: str, sensor: str) -> dict[str, Any]:
        response = await self._get(
            f"{self._backend}/api/sensor-data", 5.0, device_uuid=device_uuid, sensor=sensor
        )
        if response.status_code == 404:
            raise PassedOnError(404, "no such device or data")
        if response.status_code != 200:
            raise PassedOnError(response.status_code, response.text)
        data = response.json()["data"]
        return {"value": data["value"], "unit": data["unit"]}

    async def control(
        self, device_uuid: str, port_type: str, port_id: int, action: str, value: int | None = None
    ) -> Any:
        body = {
            "device_uuid": device_uuid,
            "port_type": port_type,
            "port_id": port_id,
            "action": action,
            "value": value,
        }
        response = await self._post("/api/control", 10.0, body)
        if response.status_code != 200:
            raise PassedOnError(response.status_code, response.text)
        return response.json()["data"]

    async def preset(
        self, device_uuid: str, preset_key: str, parameters: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        body = {"device_uuid": device_uuid, "preset_key": preset_key, "parameters": parameters}
        response = await self._post("/api/preset", 120.0, body)
        if response.status_code == 404:
            raise PassedOnError(404, "unknown preset")
        if response.status_code == 400:
            raise PassedOnError(400, response.json()["detail"])
        if response.status_code != 200:
            raise PassedOnError(response.status_code, response.text)
        data = response.json()["data"]
        seen = {name: data[name] for name in ("success", "message", "preset_name")}
        if "total_steps" in data:
            seen |= {name: data[name] for name in ("total_steps", "executed_steps", "errors")}
        return seen

    async def config(self, device_uuid: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Of the main backend, which may be us."""
        response = await self._get(f"{self._main_backend}/api/devices/{device_uuid}/config", 5.0)
        response.raise_for_status()
        data = response.json()["data"]
        presets = [
            {
                "name": preset.get("alias") or preset.get("preset_name"),
                "parameters": preset.get("parameters", {}),
            }
            for preset in data["device_preset_commands"]
        ]
        return data["device_control_config"], presets

    async def _get(self, url: str, timeout: float, **query: str) -> httpx.Response:
        async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
            return await client.get(url, params=query)

    async def _post(self, path: str, timeout: float, body: dict[str, Any]) -> httpx.Response:
        async with httpx.AsyncClient(timeout=timeout, trust_env=False) as client:
            return await client.post(f"{self._backend}{path}", json=body)


@pytest.fixture
async def service(bridge) -> AsyncIterator[PluginService]:
    yield PluginService(bridge.url, bridge.url)


@pytest.mark.parametrize("sensor", OFFERED_SENSORS)
async def test_every_sensor_that_it_offers_has_a_number_and_a_unit(service, sensor):
    board, value, unit = OFFERED_SENSORS[sensor]
    read = await service.sensor_data(board, sensor)
    assert read == {"value": value, "unit": unit}
    assert isinstance(read["value"], int | float)
    assert not isinstance(read["value"], bool)


@pytest.mark.parametrize(("board", "sensor"), [(UNKNOWN_BOARD, "温度"), (BOARD_E, "温度")])
async def test_no_such_device_or_data_is_404(service, board, sensor):
    with pytest.raises(PassedOnError) as refused:
        await service.sensor_data(board, sensor)
    assert refused.value.status == 404


@pytest.mark.parametrize(
    ("control", "command"),
    [
        (("led", 1, "on"), {"cmd": "led", "device_id": 1, "action": "on"}),
        (("relay", 2, "off"), {"cmd": "relay", "device_id": 2, "action": "off"}),
        (("servo", 1, "set", 90), {"cmd": "servo", "device_id": 1, "angle": 90}),
        (
            ("pwm", 2, "set", 50),
            {"cmd": "pwm", "channel": 2, "device_id": 2, "frequency": 5000, "duty_cycle": 50},
        ),
    ],
    ids=lambda part: part[0] if isinstance(part, tuple) else "",
)
async def test_control_reaches_the_board(service, board, control, command):
    listening = await board(BOARD_A)
    data = await service.control(BOARD_A, *control)
    assert data["result"] == "success"
    assert (await listening.next_command()).json == command


@pytest.mark.parametrize(
    ("device", "control", "status"),
    [
        (BOARD_A, ("led", 999, "explode"), 400),
        (BOARD_A, ("servo", 1, "set"), 400),
        (UNKNOWN_BOARD, ("led", 1, "on"), 404),
        (BOARD_E, ("led", 1, "on"), 409),
    ],
)
async def test_control_that_fails_is_passed_on_with_words_that_say_why(
    service, device, control, status
):
    with pytest.raises(PassedOnError) as refused:
        await service.control(device, *control)
    assert refused.value.status == status
    assert '"detail":"' in refused.value.detail


async def test_ordinary_preset_runs_with_its_parameters_overridden(service, board):
    listening = await board(BOARD_A)
    seen = await service.preset(BOARD_A, ORDINARY_PRESET, {"count": 7})
    assert (seen["success"], seen["preset_name"]) == (True, "一号灯闪烁")
    assert seen["message"]
    command = (await listening.next_command()).json
    assert command["parameters"] == {"count": 7, "on_time": 500, "off_time": 500}


async def test_sequence_tells_its_steps(service, board):
    listening = await board(BOARD_A)
    seen = await service.preset(BOARD_A, SEQUENCE)
    assert (seen["success"], seen["total_steps"], seen["errors"]) == (True, 4, [])
    assert [step["step"] for step in seen["executed_steps"]] == [1, 2, 3, 4]
    told = await listening.next_commands(4)
    assert [command["cmd"] for command in told] == ["led", "relay", "servo", "pwm"]


@pytest.mark.parametrize(
    ("device", "preset", "status"),
    [(BOARD_A, "no_such_preset", 404), (BOARD_A, MALFORMED_PRESET, 400), (BOARD_C, SEQUENCE, 400)],
)
async def test_preset_that_fails_is_told_to_the_user(service, device, preset, status):
    with pytest.raises(PassedOnError) as refused:
        await service.preset(device, preset)
    assert refused.value.status == status
    # For 400 it shows our `detail` itself, a sentence.
    assert status == 404 or not refused.value.detail.startswith("{")


async def test_config_is_there_without_the_main_backend(service):
    controls, presets = await service.config(BOARD_A)
    assert controls == {"led_1": {"alias": ALIAS}}
    assert len(presets) == len(PRESETS)
    assert {"count": 3, "on_time": 500, "off_time": 500} in [p["parameters"] for p in presets]
