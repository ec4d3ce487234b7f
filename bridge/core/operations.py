"""The table of operations, and their handlers: typed request in, typed reply out.

A new operation is one row in `OPERATIONS` and one handler. Subscriptions, routes, documents,
metric labels and the contract's tests follow from the row.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Literal

from ..devices import commands, configuration, ports, presets, sensors
from ..devices.models import (
    BatchFields,
    BatchResult,
    ControlFields,
    ControlResult,
    DeviceConfig,
    DeviceDescription,
    DeviceFields,
    DeviceProfile,
    DeviceReadings,
    Fields,
    Health,
    JsonObject,
    NoFields,
    OperationInfo,
    OperationList,
    PresetFields,
    PresetResult,
    Reading,
    SensorDataFields,
    SequenceResult,
)
from ..errors import BridgeError, DeviceNotFound, DeviceOffline, Text
from .context import Call, Item, control_topic
from .replies import Reply, reply_to_error
from .sequences import run_sequence

Handler = Callable[[Any, Call], Awaitable[Any]]
HandleMany = Callable[[Sequence[Any], Call], Awaitable[Sequence[Any]]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table."""

    name: str
    summary: Text
    method: Literal["GET", "POST"]
    path: str
    fields: type[Fields]
    data: Any
    handle: Handler
    # Refuses, before anything is asked of anyone, what no device could do.
    check: Callable[[Any], None] | None = None
    # It sends commands: at most once under one id, and in its device's order.
    commands: bool = False
    # It has `PRESET_TIMEOUT` instead of `REQUEST_TIMEOUT`.
    slow: bool = False
    # It keeps its deadline itself, since part of its work may be done when time runs out.
    keeps_time: bool = False
    # It waits for nothing but the store, which keeps a time limit of its own.
    reads: bool = False
    # It is answered however busy we are.
    always: bool = False
    # Answers many requests at once, where that is cheaper; an outcome may be an error.
    handle_many: HandleMany | None = None
    # It may be an item of a batch.
    in_batch: bool = False
    # It is an operation over MQTT too, and listed as one.
    over_mqtt: bool = True
    # The operation that an API key must allow for it; its own name unless it says another.
    permission: str = ""


async def sensor_data(fields: SensorDataFields, call: Call) -> Reading:
    """One sensor's latest value."""
    names = sensors.candidates(fields.sensor)
    if names:
        (device,) = await call.services.store.sensors([(fields.device_uuid, names)])
        reading = _direct_reading(device, fields.sensor, _now(call))
        if reading is not None:
            return reading
    return await _named_reading(fields, call)


async def sensor_data_of_many(
    many: Sequence[SensorDataFields], call: Call
) -> list[Reading | BaseException]:
    """The latest values of many sensors, by one statement where their names allow it."""
    names = [sensors.candidates(fields.sensor) for fields in many]
    wanted = [
        (fields.device_uuid, candidates)
        for fields, candidates in zip(many, names, strict=True)
        if candidates
    ]
    devices = iter(await call.services.store.sensors(wanted) if wanted else ())
    now = _now(call)
    found: list[Reading | BaseException | None] = []
    for fields, candidates in zip(many, names, strict=True):
        try:
            found.append(_direct_reading(next(devices), fields.sensor, now) if candidates else None)
        except BridgeError as error:
            found.append(error)
    rest = [number for number, reading in enumerate(found) if reading is None]
    named = await asyncio.gather(
        *(_named_reading(many[number], call) for number in rest), return_exceptions=True
    )
    answered = dict(zip(rest, named, strict=True))
    return [
        answered[number] if reading is None else reading for number, reading in enumerate(found)
    ]


async def control(fields: ControlFields, call: Call) -> ControlResult:
    """Switch or set one port; answered after the broker's acknowledgement."""
    device = await _profile(fields.device_uuid, call)
    command = commands.control_command(fields, device)
    await _send(device, command, call)
    return ControlResult("success", control_topic(device), command, device.name, device.online)


async def preset(fields: PresetFields, call: Call) -> PresetResult | SequenceResult:
    """Run a stored preset: one command, or a sequence with pauses."""
    with call.in_time():
        device = await _profile(fields.device_uuid, call)
    limit = call.services.settings.preset_timeout
    plan = presets.preset_plan(device, fields.preset_key, fields.parameters, limit)
    if not device.online:
        raise DeviceOffline(device=device.name)
    if plan.sequence:
        return await run_sequence(call, device, plan)
    with call.in_time():
        await _send(device, plan.steps[0].command, call)
    message = _PRESET_SENT.in_(call.services.settings.language).format(preset=plan.name)
    return PresetResult(success=True, message=message, preset_name=plan.name)


async def device(fields: DeviceFields, call: Call) -> DeviceDescription:
    """What a device says now and what can be done with it."""
    readings, profile = await asyncio.gather(
        _readings(fields.device_uuid, call), _profile(fields.device_uuid, call)
    )
    return DeviceDescription(
        device_uuid=readings.uuid,
        name=readings.name,
        online=readings.online,
        last_seen=readings.last_seen,
        sensors=sensors.all_readings(readings, _now(call)),
        ports=ports.ports_of(profile),
        presets=presets.preset_summaries(profile),
    )


async def config(fields: DeviceFields, call: Call) -> DeviceConfig:
    """The two keys that plugin-service reads, from the device's own row."""
    return configuration.device_config(await _profile(fields.device_uuid, call))


async def batch(fields: BatchFields, call: Call) -> BatchResult:
    """Several requests in one: reads together, commands in list order."""
    items = [call.items.open_item(call, raw, n) for n, raw in enumerate(fields.requests)]
    ordered: list[Item] = []
    alike: dict[str, list[Item]] = {}
    single: list[Item] = []
    for item in items:
        if item.reply is not None:
            continue
        row = OPERATIONS[item.operation]
        if row.commands:
            ordered.append(item)
        elif item.origin is None:
            alike.setdefault(row.name, []).append(item)
        else:
            single.append(item)

    async def run(item: Item) -> None:
        item.reply = await call.items.run_item(item)

    async def run_in_order() -> None:
        for item in ordered:
            await run(item)

    await asyncio.gather(
        run_in_order(),
        *(_run_together(group, call) for group in alike.values()),
        *(run(item) for item in single),
    )
    return BatchResult([item.body() for item in items])


async def _run_together(items: Sequence[Item], call: Call) -> None:
    """Answer items of one operation by its `handle_many`."""
    handle_many = OPERATIONS[items[0].operation].handle_many
    assert handle_many is not None
    outcomes: Sequence[Any]
    try:
        with call.in_time():
            outcomes = await handle_many([item.fields for item in items], call)
    except Exception as error:
        outcomes = [error] * len(items)
    language = call.services.settings.language
    for item, outcome in zip(items, outcomes, strict=True):
        failed = isinstance(outcome, Exception)
        item.reply = reply_to_error(outcome, language) if failed else Reply(200, outcome)


async def health(fields: NoFields, call: Call) -> Health:
    """Whether database and broker are there."""
    del fields
    return call.services.health()


async def operations(fields: NoFields, call: Call) -> OperationList:
    """The operations there are, each with the JSON Schema of its fields."""
    del fields
    settings = call.services.settings
    return OperationList(
        [
            OperationInfo(
                operation=row.name,
                summary=row.summary.in_(settings.language),
                mqtt_topic=f"{settings.mqtt_topic_prefix}/request/{row.name}",
                http_method=row.method,
                http_path=row.path,
                fields=_schema_of(row.fields),
            )
            for row in OPERATIONS.values()
            if row.over_mqtt
        ]
    )


@cache
def _schema_of(fields: type[Fields]) -> JsonObject:
    return fields.model_json_schema()


_PRESET_SENT = Text("预设「{preset}」已发送", "The preset '{preset}' was sent")


def _direct_reading(
    device: DeviceReadings | BridgeError | None, sensor: str, now: datetime
) -> Reading | None:
    if isinstance(device, BridgeError):
        raise device
    if device is None:
        raise DeviceNotFound()
    row = sensors.find_among(device, sensor)
    return None if row is None else sensors.reading(device, row, now)


async def _named_reading(fields: SensorDataFields, call: Call) -> Reading:
    """A sensor by any of its names; needs all that the device has, and its product's names."""
    device = await _readings(fields.device_uuid, call)
    return sensors.reading(device, sensors.find(device, fields.sensor), _now(call))


async def _readings(device_uuid: str, call: Call) -> DeviceReadings:
    found = await call.services.store.readings(device_uuid)
    if found is None:
        raise DeviceNotFound()
    return found


async def _profile(device_uuid: str, call: Call) -> DeviceProfile:
    found = await call.services.store.profile(device_uuid)
    if found is None:
        raise DeviceNotFound()
    return found


async def _send(device: DeviceProfile, command: JsonObject, call: Call) -> None:
    """Send one command in its turn, and wait until the broker has it."""
    acknowledged = await call.send(device, command, call.turn)
    call.check_acknowledgement(await acknowledged, device)


def _now(call: Call) -> datetime:
    """The time in the zone of the database's naive columns."""
    return datetime.now(call.services.settings.timezone)


_ROWS = (
    Operation(
        "sensor-data",
        Text("读取传感器的最新数据", "Read a sensor's latest value"),
        "GET",
        "/api/sensor-data",
        SensorDataFields,
        Reading,
        sensor_data,
        handle_many=sensor_data_of_many,
        reads=True,
        in_batch=True,
    ),
    Operation(
        "control",
        Text("控制设备端口", "Control a port of a device"),
        "POST",
        "/api/control",
        ControlFields,
        ControlResult,
        control,
        check=commands.check_control,
        commands=True,
        in_batch=True,
    ),
    Operation(
        "preset",
        Text("执行设备预设", "Run a preset of a device"),
        "POST",
        "/api/preset",
        PresetFields,
        PresetResult | SequenceResult,
        preset,
        commands=True,
        slow=True,
        keeps_time=True,
    ),
    Operation(
        "device",
        Text("查看设备：传感器、端口、预设", "Describe a device: its sensors, ports and presets"),
        "GET",
        "/api/devices/{device_uuid}",
        DeviceFields,
        DeviceDescription,
        device,
        reads=True,
        in_batch=True,
    ),
    Operation(
        "config",
        Text("读取设备的端口别名和预设", "A device's port aliases and presets, as stored"),
        "GET",
        "/api/devices/{device_uuid}/config",
        DeviceFields,
        DeviceConfig,
        config,
        reads=True,
        over_mqtt=False,
        permission="device",
    ),
    Operation(
        "batch",
        Text("一次执行多个请求", "Several requests in one"),
        "POST",
        "/api/batch",
        BatchFields,
        BatchResult,
        batch,
        keeps_time=True,
    ),
    Operation(
        "health",
        Text("健康检查", "Whether database and broker are there"),
        "GET",
        "/health",
        NoFields,
        Health,
        health,
        always=True,
    ),
    Operation(
        "operations",
        Text("列出所有操作", "List the operations"),
        "GET",
        "/api/operations",
        NoFields,
        OperationList,
        operations,
        always=True,
    ),
)

OPERATIONS: dict[str, Operation] = {row.name: row for row in _ROWS}
# Those that a request topic may name.
OPERATION_NAMES = tuple(row.name for row in _ROWS if row.over_mqtt)
