"""Presets that a device has stored: the commands that running one means, and what it adds up to.

Pure, like `commands`: nothing here waits or asks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import FieldError, Text, ValidationFailed
from .commands import as_firmware_takes_it, disabled_by
from .errors import (
    AmbiguousPreset,
    DisabledPort,
    InvalidPreset,
    PresetNotFound,
    PresetTooLong,
    UnknownParameter,
)
from .models import DeviceProfile, JsonObject, PresetSummary
from .names import plain_name
from .ports import PORT_TYPES, port_table
from .stored import first_text, is_blank, number_of, stored_object, text_of, texts_of, whole_of

MOST_STEPS = 1000

_SEQUENCE = "sequence"

_NO_STEPS = Text("没有步骤", "it has no steps")
_TOO_MANY_STEPS = Text("步骤超过 1000 个", "it has more than 1000 steps")
_BAD_STEP = Text("有步骤缺少有效的命令", "one of its steps has no usable command")
_BAD_DELAY = Text(
    "有步骤的 delay 不是大于或等于 0 的数",
    "the delay of one of its steps is not a number of 0 or more",
)
_NO_COMMAND = Text(
    "既没有 command，也没有 preset_type 和 device_type",
    "it has neither a command nor a preset_type with a device_type",
)
_UNREADABLE = Text(
    "设备的预设（device_settings）无法读取", "the device's presets (device_settings) can't be read"
)
_PORTS_UNREADABLE = Text(
    "设备的端口配置无法读取，不知道哪些端口已停用",
    "the device's port configuration can't be read, so the disabled ports are unknown",
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
        InvalidPreset: it is ambiguous, malformed, too long, has no such parameter, or would command
            a disabled port.
        ValidationFailed: a parameter is of another type than the stored one.
    """
    presets = _stored_presets(device.settings_json)
    if presets is None:
        raise InvalidPreset(preset=wanted, reason=_UNREADABLE)
    preset = _preset_called(wanted, presets)
    plan = _plan(preset, parameters, limit)
    _check_ports(plan, device)
    return plan


def _plan(
    preset: Mapping[str, Any], parameters: Mapping[str, Any] | None, limit: float
) -> PresetPlan:
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


def _check_ports(plan: PresetPlan, device: DeviceProfile) -> None:
    """Refuse the whole preset if one of its commands would reach a disabled port."""
    table = port_table(device)
    if table.unreadable:
        raise InvalidPreset(preset=plan.name, reason=_PORTS_UNREADABLE)
    if not table.disabled_types:
        return
    for step in plan.steps:
        port = disabled_by(step.command, table)
        if port is not None:
            raise DisabledPort(preset=plan.name, port=port)


def preset_summaries(device: DeviceProfile) -> list[PresetSummary]:
    return list(_summaries(device.settings_json))


def presets_of(device: DeviceProfile) -> list[Mapping[str, Any]]:
    """The device's presets, as stored; none if they can't be read."""
    return _stored_presets(device.settings_json) or []


def preset_key_of(preset: Mapping[str, Any]) -> str:
    """The key by which a preset is asked for; its name if it has none."""
    return first_text(preset, "preset_key") or _preset_name(preset)


# All steps of all sequences are looked at, and a batch may ask a hundred times. A pure function of
# the text, so that remembering it never serves anything stale.
@lru_cache(maxsize=1024)
def _summaries(settings_json: str | None) -> tuple[PresetSummary, ...]:
    return tuple(
        PresetSummary(
            preset_key=preset_key_of(preset),
            name=_preset_name(preset),
            type=_SEQUENCE
            if _is_sequence(preset)
            else first_text(preset, "preset_type") or "command",
            total_seconds=_total_seconds(preset),
        )
        for preset in _stored_presets(settings_json) or []
    )


def _stored_presets(settings_json: str | None) -> list[Mapping[str, Any]] | None:
    """The presets in `device_settings`; None if they can't be read."""
    settings = stored_object(settings_json)
    if settings is None:
        return None
    stored = settings.get("preset_commands")
    if not stored:
        return []
    if not isinstance(stored, list):
        return None
    return [preset for preset in stored if isinstance(preset, Mapping)]


def _preset_called(wanted: str, presets: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    plain = plain_name(wanted)
    for labels in (("preset_key",), ("name", "preset_name", "alias")):
        matches = [
            preset
            for preset in presets
            if plain in {plain_name(text) for text in texts_of(preset, *labels)}
        ]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise AmbiguousPreset(preset=wanted, presets=_presets_listed(matches))
    raise PresetNotFound(preset=wanted, presets=_presets_listed(presets) or "-")


def _presets_listed(presets: Sequence[Mapping[str, Any]]) -> str:
    shown = []
    for preset in presets:
        key, name = preset_key_of(preset), _preset_name(preset)
        shown.append(key if key == name else f"{key} ({name})")
    return ", ".join(shown)


def _preset_name(preset: Mapping[str, Any]) -> str:
    return first_text(preset, "name", "preset_name", "alias", "preset_key") or "?"


def _is_sequence(preset: Mapping[str, Any]) -> bool:
    kinds = {kind.casefold() for kind in texts_of(preset, "type", "preset_type")}
    return _SEQUENCE in kinds or (not kinds and "steps" in preset)


def _total_seconds(preset: Mapping[str, Any]) -> float:
    if not _is_sequence(preset):
        return 0.0
    try:
        return sum(step.delay for step in _sequence_steps(preset, ""))
    except InvalidPreset:
        return 0.0


def _check_parameters(preset: Mapping[str, Any], name: str, parameters: Mapping[str, Any]) -> None:
    stored = _stored_parameters(preset)
    if not stored:
        # Sequences and ready commands have no parameters to override.
        return
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
    zh = en = ""
    if kind in ("int", "float"):
        zh, en = "，且小于 2**53", ", smaller than 2**53"
    words = Text(
        f"应与预设中的类型相同：{kind}{zh}", f"must be of the preset's own type, {kind}{en}"
    )
    return FieldError(("parameters", parameter), words, f"{kind}_type")


def _same_kind(stored: Any, sent: Any) -> bool:
    if stored is None or sent is None:
        return stored is None
    if isinstance(stored, bool) or isinstance(sent, bool):
        return isinstance(stored, bool) and isinstance(sent, bool)
    if isinstance(stored, int | float):
        return number_of(sent) is not None
    return isinstance(sent, type(stored))


def _stored_parameters(preset: Mapping[str, Any]) -> dict[str, Any]:
    command = preset.get("command")
    of_command = command.get("parameters") if isinstance(command, Mapping) else None
    merged: dict[str, Any] = {}
    for parameters in (preset.get("parameters"), of_command):
        if isinstance(parameters, Mapping):
            merged.update(parameters)
    return merged


def _overridden(stored: Mapping[str, Any], sent: Mapping[str, Any]) -> JsonObject:
    values = dict(stored)
    for name, value in sent.items() if stored else ():
        number = number_of(value) if isinstance(stored[name], int | float) else None
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
    preset_type, device_type = first_text(preset, "preset_type"), text_of(preset.get("device_type"))
    device_id = 0 if is_blank(preset.get("device_id")) else whole_of(preset["device_id"])
    if preset_type is None or device_type is None or device_id is None:
        raise InvalidPreset(preset=name, reason=_NO_COMMAND)
    known = device_type.casefold()
    return {
        "cmd": "preset",
        "preset_type": preset_type,
        "device_type": known if known in PORT_TYPES else device_type,
        "device_id": device_id,
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
    delay = 0 if is_blank(stored.get("delay")) else number_of(stored["delay"])
    if delay is None or delay < 0:
        raise InvalidPreset(preset=name, reason=_BAD_DELAY)
    return Step(taken, float(delay))
