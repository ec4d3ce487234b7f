"""Presets that a device has stored: the commands that running one means, and what it adds up to.

Pure, like `commands`: nothing here waits or asks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import FieldError, Text, ValidationFailed
from .commands import TOO_LARGE, as_firmware_takes_it
from .errors import AmbiguousPreset, InvalidPreset, PresetNotFound, PresetTooLong, UnknownParameter
from .models import DeviceProfile, JsonObject, PresetSummary, json_object
from .names import plain_name

MOST_STEPS = 1000

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
    return list(_summaries(device.settings_json))


def presets_of(device: DeviceProfile) -> list[Mapping[str, Any]]:
    """The device's presets, as stored."""
    return _stored_presets(device.settings_json)


# All steps of all sequences are looked at, and a batch may ask a hundred times. A pure function of
# the text, so that remembering it never serves anything stale.
@lru_cache(maxsize=1024)
def _summaries(settings_json: str | None) -> tuple[PresetSummary, ...]:
    return tuple(
        PresetSummary(
            preset_key=str(preset.get("preset_key") or ""),
            name=_preset_name(preset),
            type=_SEQUENCE if _is_sequence(preset) else str(preset.get("preset_type") or "command"),
            total_seconds=_total_seconds(preset),
        )
        for preset in _stored_presets(settings_json)
    )


def _stored_presets(settings_json: str | None) -> list[Mapping[str, Any]]:
    stored = json_object(settings_json).get("preset_commands")
    listed = stored if isinstance(stored, list) else []
    return [preset for preset in listed if isinstance(preset, Mapping)]


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
            unknown = UnknownParameter(
                preset=name, parameter=parameter, parameters=", ".join(stored) or "-"
            )
            raise unknown.about(f"parameters.{parameter}", value)
        if not _same_kind(stored[parameter], value):
            raise ValidationFailed([_fault(parameter, stored[parameter])], value)


def _fault(parameter: str, stored: Any) -> FieldError:
    kind = type(stored).__name__
    limit = ", smaller than 2**53" if kind in ("int", "float") else ""
    return FieldError(("parameters", parameter), f"Input should be {kind}{limit}", f"{kind}_type")


def _same_kind(stored: Any, given: Any) -> bool:
    if stored is None or given is None:
        return stored is None
    if isinstance(stored, bool) or isinstance(given, bool):
        return isinstance(stored, bool) and isinstance(given, bool)
    if isinstance(stored, int | float):
        return _number(given) is not None
    return isinstance(given, type(stored))


def _number(value: Any) -> int | float | None:
    """A number, or the one that a text holds; None if it is none, or too large for JSON."""
    if isinstance(value, str):
        value = _read_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) < TOO_LARGE else None


def _read_number(text: str) -> int | float | None:
    try:
        number = float(text)
    except ValueError:
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
        number = _number(value) if isinstance(stored[name], int | float) else None
        values[name] = value if number is None else number
    return values


def _preset_command(
    preset: Mapping[str, Any], name: str, parameters: Mapping[str, Any]
) -> JsonObject:
    merged = _overridden(_stored_parameters(preset), parameters)
    stored = preset.get("command")
    if isinstance(stored, Mapping):
        command = as_firmware_takes_it(stored)
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
    taken = as_firmware_takes_it(command) if isinstance(command, Mapping) else None
    if taken is None:
        raise InvalidPreset(preset=name, reason=_BAD_STEP)
    delay = _number(stored.get("delay") or 0)
    if delay is None or delay < 0:
        raise InvalidPreset(preset=name, reason=_BAD_DELAY)
    return Step(taken, float(delay))
