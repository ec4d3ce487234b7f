"""The list of devices: what is asked for, what is answered, and the cursor between two pages."""

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, NamedTuple

import orjson
from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from .models import Fields, Name, no_boolean

_LONGEST_CURSOR = 1024


class Position(NamedTuple):
    """Where a page ends: its last device's name and UUID, by which the list is ordered."""

    name: str
    uuid: str

    def as_cursor(self) -> str:
        return urlsafe_b64encode(orjson.dumps(list(self))).decode().rstrip("=")

    @classmethod
    def of(cls, cursor: str) -> "Position":
        """The position that a cursor stands for; ValueError if it is none of ours."""
        padded = cursor + "=" * (-len(cursor) % 4)
        try:
            parts = orjson.loads(urlsafe_b64decode(padded.encode("ascii")))
        except (UnicodeEncodeError, binascii.Error, orjson.JSONDecodeError):
            raise ValueError("no cursor") from None
        if not isinstance(parts, list) or [type(part) for part in parts] != [str, str]:
            raise ValueError("no cursor")
        position = cls(*parts)
        if position.as_cursor() != cursor:
            raise ValueError("no cursor")
        return position


def _our_own(cursor: str) -> str:
    try:
        Position.of(cursor)
    except ValueError:
        raise PydanticCustomError(
            "cursor", "Input should be the next_cursor of the page before"
        ) from None
    return cursor


class DevicesFields(Fields):
    """All are optional; several narrow the list further."""

    query: Name | None = Field(
        None,
        description="名称或 UUID 的一部分 / a part of the device's name or UUID",
        examples=["灯"],
    )
    room: Name | None = Field(None, description="房间 / the device's room")
    group: Name | None = Field(None, description="分组 / the device's group")
    online: bool | None = Field(
        None,
        description="只列出在线（true）或离线（false）的设备 / only devices that are online (true) "
        "or offline (false)",
    )
    limit: Annotated[int, Field(ge=1, le=100), BeforeValidator(no_boolean)] = Field(
        50, description="每页的设备数，默认 50 / how many devices a page holds, default 50"
    )
    cursor: Annotated[str, Field(max_length=_LONGEST_CURSOR), AfterValidator(_our_own)] | None = (
        Field(
            None,
            description="上一页的 next_cursor / next_cursor of the page before, as it was",
        )
    )

    @property
    def after(self) -> Position | None:
        """Where the page before ended; None for the first page."""
        return None if self.cursor is None else Position.of(self.cursor)


@dataclass(slots=True)
class ListedDevice:
    """One device of the list."""

    device_uuid: str
    name: str
    online: bool
    last_seen: datetime | None
    room: str | None
    group: str | None
    floor: str | None
    product: str | None


@dataclass(slots=True)
class DeviceList:
    """`devices`: a page of them; `next_cursor` is null on the last one."""

    devices: list[ListedDevice]
    next_cursor: str | None


def page_of(found: Sequence[ListedDevice], limit: int) -> DeviceList:
    """A page of up to `limit` devices, of one more than that if there are more."""
    page = list(found[:limit])
    if len(found) <= limit:
        return DeviceList(page, None)
    return DeviceList(page, Position(page[-1].name, page[-1].device_uuid).as_cursor())
