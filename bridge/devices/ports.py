"""The ports of a device: which there are, which are disabled, and what people call them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from .models import DeviceControls, Port
from .names import plain_name
from .stored import (
    first_text,
    is_blank,
    is_disabled,
    stored_object,
    text_of,
    texts_of,
    whole_of,
)

SWITCHES = ("led", "relay")
PORT_TYPES = (*SWITCHES, "servo", "pwm")
# Of a device of which nothing is known.
_DEFAULT_PORTS = [
    (port_type, port_id)
    for port_type, count in (("led", 4), ("relay", 4), ("servo", 4), ("pwm", 2))
    for port_id in range(1, count + 1)
]
_PORT_KEY = re.compile(r"(led|relay|servo|pwm)_?(\d{1,3})")

# A port's type and number.
Place = tuple[str, int]
Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NamedPort:
    """A port, and all its names in comparable form."""

    port: Port
    names: frozenset[str]


@dataclass(frozen=True, slots=True)
class PortTable:
    ports: tuple[NamedPort, ...] = ()
    disabled: frozenset[Place] = frozenset()
    # Types with a disabled port: port 0 (all) would switch that one too.
    disabled_types: frozenset[str] = frozenset()
    # The configuration is there and can't be read: nothing may be concluded from it.
    unreadable: bool = False

    def commands_disabled(self, port_type: str, port_id: int) -> bool:
        """Whether a command to this place would also reach a disabled port."""
        if port_id == 0:
            return port_type in self.disabled_types
        return (port_type, port_id) in self.disabled


@dataclass(slots=True)
class _Found:
    ports: dict[Place, Entry] = field(default_factory=dict)
    disabled: set[Place] = field(default_factory=set)
    disabled_types: set[str] = field(default_factory=set)
    # Whether an entry says by itself which port it is, and whether any could be placed at all.
    decides: bool = False
    understood: bool = False


def port_table(device: DeviceControls) -> PortTable:
    """The device's ports: the product's, overlaid by its own configuration."""
    return _table(device.product_ports_json, device.control_config_json)


def ports_of(device: DeviceControls) -> list[Port]:
    """The ports that can be controlled, sorted by type and number."""
    return [named.port for named in port_table(device).ports]


@lru_cache(maxsize=2048)
def _table(product_json: str | None, config_json: str | None) -> PortTable:
    """A pure function of the two texts, so that a cached result is never stale.

    `type` and `device_id` make an entry a port; in a product's entry, its key (`led_1`) may say
    what these leave out. A device without a product's ports and whose own entries merely name or
    disable some has the default ports, less those.
    """
    product, config = stored_object(product_json), stored_object(config_json)
    if product is None or config is None:
        return PortTable(unreadable=True)
    found = _found_in(_overlaid(product, config), product)
    if (product or config) and not found.understood:
        return PortTable(unreadable=True)
    if not product and not found.decides:
        labels = found.ports
        found.ports = {place: labels.get(place, {}) for place in _DEFAULT_PORTS}
    places = sorted(
        (place for place in found.ports if place not in found.disabled),
        key=lambda place: (PORT_TYPES.index(place[0]), place[1]),
    )
    return PortTable(
        tuple(_named(place, found.ports[place]) for place in places),
        frozenset(found.disabled),
        frozenset(found.disabled_types),
    )


def _overlaid(product: Entry, config: Entry) -> dict[str, Entry]:
    """The entries of both by key; null and blank values hide nothing."""
    merged: dict[str, Entry] = {}
    keys_of_product: dict[str, str] = {}
    for key, entry in product.items():
        if entry is not None:
            merged[key] = _as_entry(entry)
            keys_of_product.setdefault(plain_name(key), key)
    for key, entry in config.items():
        if entry is None:
            continue
        known = key if key in merged else keys_of_product.get(plain_name(key), key)
        said = {name: value for name, value in _as_entry(entry).items() if not is_blank(value)}
        merged[known] = {**merged.get(known, {}), **said}
    return merged


def _as_entry(entry: object) -> Entry:
    # An entry that is no object counts as disabled.
    return entry if isinstance(entry, Mapping) else {"enabled": False}


def _found_in(entries: Mapping[str, Entry], product: Entry) -> _Found:
    found = _Found()
    decides = any(_says_its_place(entry) for entry in entries.values())
    for key, entry in entries.items():
        port_type, port_id = _place(key, entry)
        # A type that can't be controlled is understood all the same.
        if key in product or not product:
            found.understood |= port_type is not None or _says_its_place(entry)
        if port_type is None:
            continue
        if is_disabled(entry):
            found.disabled_types.add(port_type)
            if port_id is not None:
                found.disabled.add((port_type, port_id))
        elif port_id is not None and (
            _says_its_place(entry) or key in product or not (decides or product)
        ):
            # Of two entries for one port the first value of each name counts.
            place = (port_type, port_id)
            found.ports[place] = {**entry, **found.ports.get(place, {})}
    found.decides = decides
    return found


def _says_its_place(entry: Entry) -> bool:
    return text_of(entry.get("type")) is not None and not is_blank(entry.get("device_id"))


def _place(key: str, entry: Entry) -> tuple[str | None, int | None]:
    """Type and number of an entry's port, each None if it can't be told."""
    match = _PORT_KEY.fullmatch(plain_name(key))
    key_type, key_id = (match[1], int(match[2])) if match else (None, None)
    port_type = text_of(entry.get("type"))
    if port_type is None:
        known = key_type if is_blank(entry.get("type")) else None
    else:
        known = port_type.casefold() if port_type.casefold() in PORT_TYPES else None
    device_id = entry.get("device_id")
    if not is_blank(device_id):
        return known, whole_of(device_id)
    return known, key_id if known == key_type else None


def _named(place: Place, entry: Entry) -> NamedPort:
    port = Port(*place, first_text(entry, "name"), first_text(entry, "alias", "custom_name"))
    names = texts_of(entry, "name", "alias", "custom_name")
    return NamedPort(port, frozenset(map(plain_name, names)))


def listed(ports: Iterable[NamedPort]) -> str:
    """The ports as an error's sentence lists them: type, number and names; `-` if none."""
    shown = []
    for named in ports:
        port = named.port
        labels = [label for label in (port.alias, port.name) if label]
        suffix = f" ({', '.join(labels)})" if labels else ""
        shown.append(f"{port.port_type} {port.port_id}{suffix}")
    return ", ".join(shown) or "-"
