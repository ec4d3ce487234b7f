"""Device commands from control requests: what exactly the firmware takes.

The firmware's table (led and relay: `action`; servo: `angle`; pwm: `channel`, `frequency`,
`duty_cycle`) is in docs/contract.md. Pure: nothing here waits or asks.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import FieldError, Text, ValidationFailed, fault_text
from .errors import (
    AmbiguousPort,
    SomeDisabled,
    UnknownAction,
    UnknownPort,
    UnknownPortName,
    UnknownPortType,
    UnreadablePorts,
    ValueMissing,
)
from .models import ControlFields, DeviceControls, JsonObject, Port
from .names import plain_name
from .ports import PORT_TYPES, SWITCHES, NamedPort, PortTable, listed, port_table
from .stored import is_blank, number_of, text_of, whole_of

DEFAULT_FREQUENCY = 5000
_MOST = {"servo": 180, "pwm": 100}

_WHICH_PORT = Text(
    "缺少该字段：请用 port_type 和 port_id，或用 port（端口的名称）指明端口",
    "is missing: name the port by port_type and port_id, or by port (its name)",
)


def check_control(fields: ControlFields) -> None:
    """Refuse what no device could do, before the database is asked.

    Raises:
        ValidationFailed: fields are missing or out of range.
        InvalidControl: unknown port type or action, or a missing value.
    """
    if fields.port is not None:
        return
    missing = [
        FieldError((name,), _WHICH_PORT, "missing")
        for name in ("port_type", "port_id")
        if getattr(fields, name) is None
    ]
    if missing:
        raise ValidationFailed(missing)
    assert fields.port_type is not None
    _check_action(_known_type(fields.port_type), fields)


def control_command(fields: ControlFields, device: DeviceControls) -> JsonObject:
    """The command that a control request means on this device.

    Raises:
        InvalidControl: unknown, disabled or ambiguous port, unknown type or action, missing value.
        ValidationFailed: the value is out of the port's range.
    """
    table = port_table(device)
    if table.unreadable:
        raise UnreadablePorts()
    if fields.port is not None:
        port = _port_called(fields.port, table.ports, fields.port_type)
        port_type, port_id = port.port_type, port.port_id
        _check_action(port_type, fields)
    else:
        assert fields.port_type is not None
        assert fields.port_id is not None
        port_type, port_id = _known_type(fields.port_type), fields.port_id
    _check_port_exists(port_type, port_id, table)
    if port_type in SWITCHES:
        return {"cmd": port_type, "device_id": port_id, "action": fields.action}
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
    if port_type not in PORT_TYPES:
        raise UnknownPortType(port_type=port_type)
    return port_type


def _check_action(port_type: str, fields: ControlFields) -> None:
    actions = ("on", "off") if port_type in SWITCHES else ("set",)
    if fields.action not in actions:
        raise UnknownAction(port_type=port_type, action=fields.action, actions=" / ".join(actions))
    if port_type in SWITCHES:
        return
    most = _MOST[port_type]
    if fields.value is None:
        raise ValueMissing(port_type=port_type, maximum=most)
    if not 0 <= fields.value <= most:
        kind = "less_than_equal" if fields.value > most else "greater_than_equal"
        words = fault_text(kind, le=most, ge=0)
        raise ValidationFailed([FieldError(("value",), words, kind)], fields.value)


def _check_port_exists(port_type: str, port_id: int, table: PortTable) -> None:
    ids = {named.port.port_id for named in table.ports if named.port.port_type == port_type}
    if port_id == 0 and port_type in SWITCHES and table.commands_disabled(port_type, 0):
        raise SomeDisabled(port_type=port_type, ports=listed(table.ports))
    if port_id in ids or (port_id == 0 and ids and port_type in SWITCHES):
        return
    raise UnknownPort(port=f"{port_type} {port_id}", ports=listed(table.ports))


def _port_called(name: str, ports: Sequence[NamedPort], port_type: str | None) -> Port:
    wanted = plain_name(name)
    wanted_type = None if port_type is None else _known_type(port_type)
    matches = [
        named
        for named in ports
        if wanted in named.names and wanted_type in (None, named.port.port_type)
    ]
    if len(matches) == 1:
        return matches[0].port
    if matches:
        raise AmbiguousPort(port=name, ports=listed(matches))
    raise UnknownPortName(port=name, ports=listed(ports))


def as_firmware_takes_it(stored: Mapping[str, Any]) -> JsonObject | None:
    """A stored command in the firmware's own words; None when it is no command at all.

    Stored led and relay steps carry `value` 1/0 for `action`, servo steps may carry `value` for
    `angle`, and pwm steps `device_id` and `duty` for `channel` and `duty_cycle`. The first usable
    of the alternatives counts: null hides nothing.
    """
    cmd = text_of(stored.get("cmd"))
    if cmd is None or not isinstance(stored["cmd"], str):
        return None
    kind = cmd.casefold()
    if kind in SWITCHES:
        return _stored_switch(kind, stored)
    if kind == "servo":
        device_id, angle = _id(stored, 1, "device_id"), _first(stored, "angle", "value")
        if device_id is None or angle is None:
            return None
        return {"cmd": "servo", "device_id": device_id, "angle": angle}
    if kind == "pwm":
        return _stored_pwm(stored)
    kept = {name: value for name, value in stored.items() if value is not None}
    return {**kept, "cmd": cmd}


def _stored_pwm(stored: Mapping[str, Any]) -> JsonObject | None:
    channel = _id(stored, 1, "channel", "device_id")
    duty = _first(stored, "duty_cycle", "duty", "value")
    frequency = _first(stored, "frequency") or DEFAULT_FREQUENCY
    return None if channel is None or duty is None else _pwm(channel, frequency, duty)


def _stored_switch(kind: str, stored: Mapping[str, Any]) -> JsonObject | None:
    device_id = _id(stored, 0, "device_id")
    action = stored.get("action")
    said = stored.get("value") if is_blank(action) else action
    if isinstance(said, str):
        said = said.strip().casefold()
    # True and 1.0 are equal to 1.
    if said in (1, "1", "on", "true"):
        action = "on"
    elif said in (0, "0", "off", "false"):
        action = "off"
    else:
        return None
    return None if device_id is None else {"cmd": kind, "device_id": device_id, "action": action}


def _first(stored: Mapping[str, Any], *names: str) -> int | float | None:
    """The first of the values under `names` that is a number."""
    numbers = (number_of(stored.get(name)) for name in names)
    return next((number for number in numbers if number is not None), None)


def _id(stored: Mapping[str, Any], default: int, *names: str) -> int | None:
    """The first of the values that can be a port's number, `default` if there is none at all."""
    values = [stored[name] for name in names if not is_blank(stored.get(name))]
    if not values:
        return default
    return next((number for value in values if (number := whole_of(value)) is not None), None)


def disabled_by(command: JsonObject, table: PortTable) -> str | None:
    """The disabled port that a command would reach, named; None if it reaches none."""
    for part in _parts(command):
        kinds = {
            kind.casefold()
            for name in ("cmd", "device_type")
            if (kind := text_of(part.get(name))) is not None
        }
        for port_type in sorted(kinds.intersection(table.disabled_types)):
            for port_id in _ids(part):
                if table.commands_disabled(port_type, port_id):
                    return f"{port_type} {port_id}"
    return None


def _parts(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object in a command: some carry others."""
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for child in value:
            yield from _parts(child)


def _ids(part: Mapping[str, Any]) -> list[int]:
    """The numbers that a command may mean by its port; 0, all, where that can't be told."""
    values = [part[name] for name in ("device_id", "channel", "port_id") if name in part]
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    numbers = [whole_of(value) for value in flat]
    return [0 if number is None else number for number in numbers] or [0]
