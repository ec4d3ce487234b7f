"""The table of operations, and their handlers: typed request in, typed reply out.

A new operation is one row in `OPERATIONS` and one handler. Subscriptions, routes, documents,
metric labels and the contract's tests follow from the row.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Literal, NoReturn

from ..devices import commands, configuration, ports, presets, sensors
from ..devices.errors import DeviceNotFound, DeviceOffline
from ..devices.listing import DeviceList, DevicesFields
from ..devices.models import (
    BatchFields,
    BatchResult,
    ControlFields,
    ControlResult,
    DeviceConfig,
    DeviceControls,
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
from ..errors import BridgeError, Text
from .attempt import Context, control_topic
from .device_list import devices
from .sequences import run_sequence

Handler = Callable[[Any, Context], Awaitable[Any]]
HandleMany = Callable[[Sequence[Any], Context], Awaitable[Sequence[Any]]]


@dataclass(frozen=True, slots=True)
class Operation:
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


async def sensor_data(fields: SensorDataFields, context: Context) -> Reading:
    """One sensor's latest value; raises DeviceNotFound, SensorNotFound or AmbiguousSensor."""
    names = sensors.candidates(fields.sensor)
    if names:
        (device,) = await context.services.store.sensors([(fields.device_uuid, names)])
        reading = _direct_reading(device, fields.sensor, _now(context))
        if reading is not None:
            return reading
    return await _named_reading(fields, context)


async def sensor_data_of_many(
    many: Sequence[SensorDataFields], context: Context
) -> list[Reading | BaseException]:
    """The latest values of many sensors, by one statement where their names allow it."""
    names = [sensors.candidates(fields.sensor) for fields in many]
    wanted = [
        (fields.device_uuid, candidates)
        for fields, candidates in zip(many, names, strict=True)
        if candidates
    ]
    devices = iter(await context.services.store.sensors(wanted) if wanted else ())
    now = _now(context)
    found: list[Reading | BaseException | None] = []
    for fields, candidates in zip(many, names, strict=True):
        try:
            found.append(_direct_reading(next(devices), fields.sensor, now) if candidates else None)
        except BridgeError as error:
            found.append(error)
    rest = [number for number, reading in enumerate(found) if reading is None]
    named = await asyncio.gather(
        *(_named_reading(many[number], context) for number in rest), return_exceptions=True
    )
    answered = dict(zip(rest, named, strict=True))
    return [
        answered[number] if reading is None else reading for number, reading in enumerate(found)
    ]


async def control(fields: ControlFields, context: Context) -> ControlResult:
    """Send one command, and wait for its PUBACK; raises as `control_command` and `send` do."""
    device = await context.services.store.controls(fields.device_uuid)
    if device is None:
        raise DeviceNotFound()
    command = commands.control_command(fields, device)
    await _send(device, command, context)
    return ControlResult("success", control_topic(device), command, device.name, device.online)


async def preset(fields: PresetFields, context: Context) -> PresetResult | SequenceResult:
    """Run a stored preset: one command, or a sequence with pauses.

    Raises DeviceOffline, and what `preset_plan`, `run_sequence` and `CommandAttempt.send` raise.
    """
    with context.in_time():
        device = await _profile(fields.device_uuid, context)
    limit = context.services.settings.preset_timeout
    plan = presets.preset_plan(device, fields.preset_key, fields.parameters, limit)
    if not device.online:
        raise DeviceOffline(device=device.name)
    if plan.sequence:
        return await run_sequence(context, device, plan)
    with context.in_time():
        await _send(device, plan.steps[0].command, context)
    message = _PRESET_SENT.in_(context.services.settings.language).format(preset=plan.name)
    return PresetResult(success=True, message=message, preset_name=plan.name)


async def device(fields: DeviceFields, context: Context) -> DeviceDescription:
    """A device's sensors, ports and presets; raises DeviceNotFound."""
    readings, profile = await asyncio.gather(
        _readings(fields.device_uuid, context), _profile(fields.device_uuid, context)
    )
    return DeviceDescription(
        device_uuid=readings.uuid,
        name=readings.name,
        online=readings.online,
        last_seen=readings.last_seen,
        sensors=sensors.all_readings(readings, _now(context)),
        ports=ports.ports_of(profile),
        presets=presets.preset_summaries(profile),
    )


async def config(fields: DeviceFields, context: Context) -> DeviceConfig:
    """The two keys that plugin-service reads, from the device's own row."""
    return configuration.device_config(await _profile(fields.device_uuid, context))


async def health(_: NoFields, context: Context) -> Health:
    """The state at the last query or probe; never waits."""
    return context.services.health()


async def operations(_: NoFields, context: Context) -> OperationList:
    settings = context.services.settings
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


async def _by_dispatcher(fields: Fields, context: Context) -> NoReturn:
    """A batch runs other operations, which is the dispatcher's own work."""
    raise NotImplementedError


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


async def _named_reading(fields: SensorDataFields, context: Context) -> Reading:
    """A sensor by any of its names; needs all that the device has, and its product's names."""
    device = await _readings(fields.device_uuid, context)
    return sensors.reading(device, sensors.find(device, fields.sensor), _now(context))


async def _readings(device_uuid: str, context: Context) -> DeviceReadings:
    found = await context.services.store.readings(device_uuid)
    if found is None:
        raise DeviceNotFound()
    return found


async def _profile(device_uuid: str, context: Context) -> DeviceProfile:
    found = await context.services.store.profile(device_uuid)
    if found is None:
        raise DeviceNotFound()
    return found


async def _send(device: DeviceControls, command: JsonObject, context: Context) -> None:
    context.commands.check(await context.commands.send(device, command), device)


def _now(context: Context) -> datetime:
    """The time in the zone of the database's naive columns."""
    return datetime.now(context.services.settings.timezone)


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
        "devices",
        Text("列出设备：按名称、房间、分组查找", "List devices: find them by name, room or group"),
        "GET",
        "/api/devices",
        DevicesFields,
        DeviceList,
        devices,
        reads=True,
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
        _by_dispatcher,
        keeps_time=True,
    ),
    Operation(
        "health",
        Text("健康检查", "Check whether database and broker are available"),
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
