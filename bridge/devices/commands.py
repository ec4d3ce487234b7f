"""Device commands from control requests: what exactly the firmware takes.

The firmware's table (led and relay: `action`; servo: `angle`; pwm: `channel`, `frequency`,
`duty_cycle`) is in docs/contract.md. Pure: nothing here waits or asks.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import FieldError, ValidationFailed
from .errors import (
    AmbiguousPort,
    UnknownAction,
    UnknownPort,
    UnknownPortName,
    UnknownPortType,
    ValueMissing,
)
from .models import ControlFields, DeviceProfile, JsonObject, Port, json_object
from .names import plain_name

DEFAULT_FREQUENCY = 5000
# From here on readers of JSON disagree on whole numbers, and at 2**64 writers give up.
TOO_LARGE = 2**53

_SWITCHES = ("led", "relay")
_MOST = {"servo": 180, "pwm": 100}
_PORT_TYPES = (*_SWITCHES, *_MOST)
# Of a device that names no ports of its own.
_DEFAULT_PORTS = [
    Port(port_type, port_id, None, None)
    for port_type, count in (("led", 4), ("relay", 4), ("servo", 4), ("pwm", 2))
    for port_id in range(1, count + 1)
]
_DIGITS = re.compile(r"[0-9]{1,20}")
_PORT_KEY = re.compile(r"(led|relay|servo|pwm)_?(\d{1,3})")


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
    if isinstance(value, str) and _DIGITS.fullmatch(value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if abs(value) < TOO_LARGE else None


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


# ---- stored commands ----------------------------------------------------------------------------


def as_firmware_takes_it(stored: Mapping[str, Any]) -> JsonObject | None:
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
