"""A device's configuration as plugin-service reads it, with the names that it looks for."""

from collections.abc import Mapping
from typing import Any

from .models import DeviceConfig, DeviceProfile, JsonObject
from .presets import preset_key_of, presets_of
from .stored import first_text, json_object


def device_config(device: DeviceProfile) -> DeviceConfig:
    """The device's own configuration of ports, and its presets.

    Each port has as `alias` the name that a person gave it; each preset an `alias`, and its key as
    `preset_name`. What can't be read is empty.
    """
    return DeviceConfig(
        device_control_config={
            key: _with(entry, alias=first_text(entry, "alias", "custom_name"))
            if isinstance(entry, Mapping)
            else entry
            for key, entry in json_object(device.control_config_json).items()
        },
        device_preset_commands=[
            _with(
                preset,
                alias=first_text(preset, "alias", "custom_name", "name"),
                preset_name=first_text(preset, "preset_name") or preset_key_of(preset),
            )
            for preset in presets_of(device)
        ],
    )


def _with(entry: Mapping[str, Any], **names: str | None) -> JsonObject:
    return {**entry, **{label: name for label, name in names.items() if name is not None}}
