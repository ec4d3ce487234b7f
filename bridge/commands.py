"""Device commands from control requests and presets: what exactly the firmware takes.

The firmware's table (led and relay: `action`; servo: `angle`; pwm: `channel`, `frequency`,
`duty_cycle`) is in docs/contract.md. Pure: nothing here waits or asks.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import (
    AmbiguousPort,
    AmbiguousPreset,
    FieldError,
    InvalidPreset,
    PresetNotFound,
    PresetTooLong,
    Text,
    UnknownAction,
    UnknownParameter,
    UnknownPort,
    UnknownPortName,
    UnknownPortType,
    ValidationFailed,
    ValueMissing,
)
from .models import ControlFields, DeviceProfile, JsonObject, Port, PresetSummary, json_object
from .sensors import plain_name

DEFAULT_FREQUENCY = 5000
MOST_STEPS = 1000

_SWITCHES = ("led", "relay")
_MOST = {"servo": 180, "pwm": 100}
_PORT_TYPES = (*_SWITCHES, *_MOST)
# Of a device that names no ports of its own.
_DEFAULT_PORTS = [
    Port(port_type, port_id, None, None)
    for port_type, count in (("led", 4), ("relay", 4), ("servo", 4), ("pwm", 2))
    for port_id in range(1, count + 1)
]
_PORT_KEY = re.compile(r"(led|relay|servo|pwm)_?(\d{1,3})")
_SEQUENCE = "sequence"

_NO_STEPS = Text("没有步骤", "it has no steps")
_TOO_MANY_STEPS = Text("步骤超过 1000 个", "it has more than 1000 steps")
_BAD_STEP = Text("有步骤缺少有效的命令", "one of its steps has no usable command")
_BAD_DELAY = Text("有步骤的 delay 不是非负数", "the delay of one of its steps is no number >= 0")
_NO_COMMAND = Text(
    "既没有 command，也没有 preset_type 和 device_type",
    "it has neither a command nor a preset_type with a device_type",
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a sequence and the pause after it, in seconds."""

    command: JsonObject
    delay: float


@dataclass(frozen=True, slots=True)
class PresetPlan:
    """What running a preset means; an ordinary preset is one step without a pause."""

    name: str
    sequence: bool
    steps: tuple[Step, ...]


# ---- ports --------------------------------------------------------------------------------------


def ports_of(device: DeviceProfile) -> list[Port]:
    """The ports that can be controlled, sorted by type and number.

    The product's `control_ports`, overlaid key by key by the device's own config; `type` and
    `device_id` make an entry a port. A device without such entries has the default ports, and
    entries that merely name one (`{"led_1": {"alias": …}}`) name it there.
    """
    entries = _overlaid(
        json_object(device.product_ports_json), json_object(device.control_config_json)
    )
    named = [port for entry in entries.values() if (port := _port(entry)) is not None]
    if named:
        return sorted(named, key=lambda port: (_PORT_TYPES.index(port.port_type), port.port_id))
    labels = {
        (match[1], int(match[2])): entry
        for key, entry in entries.items()
        if (match := _PORT_KEY.fullmatch(plain_name(key)))
    }
    return [_labelled(port, labels.get((port.port_type, port.port_id))) for port in _DEFAULT_PORTS]


def _overlaid(
    product: Mapping[str, Any], device: Mapping[str, Any]
) -> dict[str, Mapping[str, Any]]:
    merged: dict[str, Mapping[str, Any]] = {}
    for config in (product, device):
        for key, entry in config.items():
            if isinstance(entry, Mapping):
                merged[key] = {**merged.get(key, {}), **entry}
    return merged


def _port(entry: Mapping[str, Any]) -> Port | None:
    port_type = str(entry.get("type") or "").casefold()
    port_id = _whole(entry.get("device_id"))
    if port_type not in _PORT_TYPES or port_id is None or entry.get("enabled") is False:
        return None
    return _labelled(Port(port_type, port_id, None, None), entry)


def _labelled(port: Port, entry: Mapping[str, Any] | None) -> Port:
    if entry is None:
        return port
    name, alias = (str(entry.get(label) or "") or None for label in ("name", "alias"))
    return Port(port.port_type, port.port_id, name, alias)


def _whole(value: object) -> int | None:
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


# ---- control ------------------------------------------------------------------------------------


def check_control(fields: ControlFields) -> None:
    """Refuse what no device could do, before anything is asked of the database.

    Raises:
        ValidationFailed: fields are missing or out of range.
        InvalidControl: unknown port type or action, or a missing value.
    """
    if fields.port is not None:
        return
    missing = [
        FieldError((name,), "Field required", "missing")
        for name in ("port_type", "port_id")
        if getattr(fields, name) is None
    ]
    if missing:
        raise ValidationFailed(missing)
    assert fields.port_type is not None
    _check_action(_known_type(fields.port_type), fields)


def control_command(fields: ControlFields, device: DeviceProfile) -> JsonObject:
    """The command that a control request means on this device.

    Raises:
        InvalidControl: unknown or ambiguous port, unknown type or action, missing value.
        ValidationFailed: the value is out of the port's range.
    """
    ports = ports_of(device)
    if fields.port is not None:
        port = _port_called(fields.port, ports, fields.port_type)
        port_type, port_id = port.port_type, port.port_id
        _check_action(port_type, fields)
    else:
        assert fields.port_type is not None
        assert fields.port_id is not None
        port_type, port_id = _known_type(fields.port_type), fields.port_id
        _check_port_exists(port_type, port_id, ports)
    if port_type in _SWITCHES:
        return {"cmd": port_type, "device_id": port_id, "action": fields.action.casefold()}
    if port_type == "servo":
        return {"cmd": "servo", "device_id": port_id, "angle": fields.value}
    frequency = DEFAULT_FREQUENCY if fields.frequency is None else fields.frequency
    return _pwm(port_id, frequency, fields.value)


def _pwm(port_id: Any, frequency: Any, duty_cycle: Any) -> JsonObject:
    # The firmware reads `channel`; older boards read `device_id`.
    return {
        "cmd": "pwm",
        "channel": port_id,
        "device_id": port_id,
        "frequency": frequency,
        "duty_cycle": duty_cycle,
    }


def _known_type(port_type: str) -> str:
    known = port_type.strip().casefold()
    if known not in _PORT_TYPES:
        raise UnknownPortType(port_type=port_type)
    return known


def _check_action(port_type: str, fields: ControlFields) -> None:
    actions = ("on", "off") if port_type in _SWITCHES else ("set",)
    if fields.action.casefold() not in actions:
        raise UnknownAction(port_type=port_type, action=fields.action, actions=" / ".join(actions))
    if port_type in _SWITCHES:
        return
    most = _MOST[port_type]
    if fields.value is None:
        raise ValueMissing(port_type=port_type, maximum=most)
    if not 0 <= fields.value <= most:
        bound, kind = (
            (most, "less_than_equal") if fields.value > most else (0, "greater_than_equal")
        )
        words = f"Input should be {kind.split('_')[0]} than or equal to {bound}"
        raise ValidationFailed([FieldError(("value",), words, kind)], fields.value)


def _check_port_exists(port_type: str, port_id: int, ports: Sequence[Port]) -> None:
    ids = {port.port_id for port in ports if port.port_type == port_type}
    if port_id in ids or (port_id == 0 and ids and port_type in _SWITCHES):
        return
    raise UnknownPort(port=f"{port_type} {port_id}", ports=_ports_listed(ports))


def _port_called(name: str, ports: Sequence[Port], port_type: str | None) -> Port:
    wanted = plain_name(name)
    wanted_type = None if port_type is None else _known_type(port_type)
    matches = [
        port
        for port in ports
        if wanted in {plain_name(label) for label in (port.alias, port.name) if label}
        and wanted_type in (None, port.port_type)
    ]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise AmbiguousPort(port=name, ports=_ports_listed(matches))
    raise UnknownPortName(port=name, ports=_ports_listed(ports))


def _ports_listed(ports: Iterable[Port]) -> str:
    shown = []
    for port in ports:
        labels = [label for label in (port.alias, port.name) if label]
        suffix = f" ({', '.join(labels)})" if labels else ""
        shown.append(f"{port.port_type} {port.port_id}{suffix}")
    return ", ".join(shown) or "-"


# ---- presets ------------------------------------------------------------------------------------


def preset_plan(
    device: DeviceProfile, wanted: str, parameters: Mapping[str, Any] | None, limit: float
) -> PresetPlan:
    """What running the device's preset means; `limit` in seconds.

    Raises:
        PresetNotFound: no preset has that key or name; it lists the presets there are.
        InvalidPreset: it is ambiguous, malformed, too long, or has no such parameter.
        ValidationFailed: a parameter is of another type than the stored one.
    """
    preset = _preset_called(wanted, presets_of(device))
    name = _preset_name(preset)
    _check_parameters(preset, name, parameters or {})
    if _is_sequence(preset):
        steps = _sequence_steps(preset, name)
        seconds = sum(step.delay for step in steps)
        if seconds > limit:
            raise PresetTooLong(preset=name, seconds=seconds, limit=limit)
        return PresetPlan(name, sequence=True, steps=steps)
    command = _preset_command(preset, name, parameters or {})
    return PresetPlan(name, sequence=False, steps=(Step(command, 0.0),))


def preset_summaries(device: DeviceProfile) -> list[PresetSummary]:
    """The device's presets, as `device` tells them."""
    return [
        PresetSummary(
            preset_key=str(preset.get("preset_key") or ""),
            name=_preset_name(preset),
            type=_SEQUENCE if _is_sequence(preset) else str(preset.get("preset_type") or "command"),
            total_seconds=_total_seconds(preset),
        )
        for preset in presets_of(device)
    ]


def presets_of(device: DeviceProfile) -> list[Mapping[str, Any]]:
    """The device's presets, as stored."""
    stored = json_object(device.settings_json).get("preset_commands")
    return (
        [preset for preset in stored or () if isinstance(preset, Mapping)]
        if isinstance(stored, list)
        else []
    )


def _preset_called(wanted: str, presets: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    for labels in (("preset_key",), ("name", "preset_name", "alias")):
        exact = [
            preset
            for preset in presets
            if plain_name(wanted) in {plain_name(str(preset.get(label) or "")) for label in labels}
        ]
        if len(exact) == 1:
            return exact[0]
        if exact:
            raise AmbiguousPreset(
                preset=wanted, presets=", ".join(str(preset.get("preset_key")) for preset in exact)
            )
    listed = [f"{preset.get('preset_key')} ({_preset_name(preset)})" for preset in presets]
    raise PresetNotFound(preset=wanted, presets=", ".join(listed) or "-")


def _preset_name(preset: Mapping[str, Any]) -> str:
    labels = ("name", "preset_name", "preset_key")
    return next((str(preset[label]) for label in labels if preset.get(label)), "?")


def _is_sequence(preset: Mapping[str, Any]) -> bool:
    kinds = (preset.get("type"), preset.get("preset_type"))
    return _SEQUENCE in kinds or (not any(kinds) and "steps" in preset)


def _total_seconds(preset: Mapping[str, Any]) -> float:
    if not _is_sequence(preset):
        return 0.0
    try:
        return sum(step.delay for step in _sequence_steps(preset, ""))
    except InvalidPreset:
        return 0.0


def _check_parameters(preset: Mapping[str, Any], name: str, parameters: Mapping[str, Any]) -> None:
    stored = _stored_parameters(preset)
    for parameter, value in parameters.items():
        if parameter not in stored:
            raise UnknownParameter(
                preset=name, parameter=parameter, parameters=", ".join(stored) or "-"
            )
        if not _same_kind(stored[parameter], value):
            kind = type(stored[parameter]).__name__
            fault = FieldError(("parameters", parameter), f"Input should be {kind}", f"{kind}_type")
            raise ValidationFailed([fault], value)


def _same_kind(stored: Any, given: Any) -> bool:
    if stored is None or given is None:
        return stored is None
    if isinstance(stored, bool) or isinstance(given, bool):
        return isinstance(stored, bool) and isinstance(given, bool)
    if isinstance(stored, int | float):
        return isinstance(given, int | float) or _as_number(given) is not None
    return isinstance(given, type(stored))


def _as_number(value: Any) -> int | float | None:
    if not isinstance(value, str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    if not math.isfinite(number):
        return None
    return int(number) if number.is_integer() else number


def _stored_parameters(preset: Mapping[str, Any]) -> dict[str, Any]:
    command = preset.get("command")
    of_command = command.get("parameters") if isinstance(command, Mapping) else None
    merged: dict[str, Any] = {}
    for parameters in (preset.get("parameters"), of_command):
        if isinstance(parameters, Mapping):
            merged.update(parameters)
    return merged


def _overridden(stored: Mapping[str, Any], given: Mapping[str, Any]) -> JsonObject:
    values = dict(stored)
    for name, value in given.items():
        number = _as_number(value) if isinstance(stored[name], int | float) else None
        values[name] = value if number is None else number
    return values


def _preset_command(
    preset: Mapping[str, Any], name: str, parameters: Mapping[str, Any]
) -> JsonObject:
    merged = _overridden(_stored_parameters(preset), parameters)
    stored = preset.get("command")
    if isinstance(stored, Mapping):
        command = _as_firmware_takes_it(stored)
        if command is None:
            raise InvalidPreset(preset=name, reason=_BAD_STEP)
        return {**command, "parameters": merged} if merged else command
    preset_type, device_type = preset.get("preset_type"), preset.get("device_type")
    if not (isinstance(preset_type, str) and preset_type and device_type):
        raise InvalidPreset(preset=name, reason=_NO_COMMAND)
    return {
        "cmd": "preset",
        "preset_type": preset_type,
        "device_type": device_type,
        "device_id": preset.get("device_id", 0),
        "parameters": merged,
    }


def _sequence_steps(preset: Mapping[str, Any], name: str) -> tuple[Step, ...]:
    stored = preset.get("steps")
    if not isinstance(stored, list) or not stored:
        raise InvalidPreset(preset=name, reason=_NO_STEPS)
    if len(stored) > MOST_STEPS:
        raise InvalidPreset(preset=name, reason=_TOO_MANY_STEPS)
    return tuple(_step(step, name) for step in stored)


def _step(stored: Any, name: str) -> Step:
    command = stored.get("command") if isinstance(stored, Mapping) else None
    taken = _as_firmware_takes_it(command) if isinstance(command, Mapping) else None
    if taken is None:
        raise InvalidPreset(preset=name, reason=_BAD_STEP)
    delay = stored.get("delay") or 0
    if isinstance(delay, str):
        delay = _as_number(delay)
    if isinstance(delay, bool) or not isinstance(delay, int | float) or delay < 0:
        raise InvalidPreset(preset=name, reason=_BAD_DELAY)
    return Step(taken, float(delay))


def _as_firmware_takes_it(stored: Mapping[str, Any]) -> JsonObject | None:
    """A stored command in the firmware's own words; None when it is no command at all.

    Stored led and relay steps carry `value` 1/0 for `action`, servo steps may carry `value` for
    `angle`, and pwm steps `device_id` and `duty` for `channel` and `duty_cycle`.
    """
    cmd = stored.get("cmd")
    if not isinstance(cmd, str) or not cmd:
        return None
    kind = cmd.casefold()
    if kind in _SWITCHES:
        return _stored_switch(kind, stored)
    if kind == "servo":
        angle = stored.get("angle", stored.get("value"))
        return (
            None
            if angle is None
            else {"cmd": "servo", "device_id": stored.get("device_id", 1), "angle": angle}
        )
    if kind == "pwm":
        duty = stored.get("duty_cycle", stored.get("duty", stored.get("value")))
        channel = stored.get("channel", stored.get("device_id", 1))
        frequency = stored.get("frequency", DEFAULT_FREQUENCY)
        return None if duty is None else _pwm(channel, frequency, duty)
    return dict(stored)


def _stored_switch(kind: str, stored: Mapping[str, Any]) -> JsonObject | None:
    action = stored.get("action")
    if action is None and "value" in stored:
        value = stored["value"]
        action = (
            "on" if value in (1, True, "1", "on") else "off" if value in (0, "0", "off") else None
        )
    if not isinstance(action, str) or action.casefold() not in ("on", "off"):
        return None
    return {"cmd": kind, "device_id": stored.get("device_id", 0), "action": action.casefold()}
