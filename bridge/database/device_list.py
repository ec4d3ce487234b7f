"""The list of devices: one statement a page, and one page at a time.

No index of the platform's tables orders devices by name, so that every page reads `device_main`
from end to end. Only one such statement runs at a time; others wait for their turn, so that a
flood of them leaves the pool's other connections to what is read by key.
"""

import asyncio
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from ..devices.listing import DevicesFields, ListedDevice
from ..errors import DatabaseTimeout
from .columns import flag, text, time
from .pool import Database, Row, StatementRefused
from .statements import COLUMNS_THERE

# The page is found first, by the few columns that say which and in which order; the rest is read
# of its rows alone.
_PAGE = """
SELECT d.uuid, d.name, d.is_online, d.last_seen, d.room, d.group_name, d.floor, p.name
  FROM (SELECT d.id, {name} AS name, {uuid} AS uuid
          FROM device_main d
         WHERE {conditions}
         ORDER BY name, uuid
         LIMIT %s) page
  JOIN device_main d ON d.id = page.id
  LEFT JOIN device_products p ON p.id = d.product_id
 ORDER BY page.name, page.uuid
"""

# Columns that old installations lack, and what stands for them: without `is_active`, every device
# is in use.
_OPTIONAL = {
    ("device_main", "room"): ("d.room", "NULL"),
    ("device_main", "group_name"): ("d.group_name", "NULL"),
    ("device_main", "floor"): ("d.floor", "NULL"),
    ("device_main", "is_active"): ("d.is_active", "1"),
    ("device_products", "name"): ("p.name", "NULL"),
}
# ER_BAD_FIELD_ERROR
_UNKNOWN_COLUMN = 1054

# Whatever charset and collation a column has, so that any text can be compared with it.
_IN_UNICODE = "CONVERT({} USING utf8mb4) COLLATE utf8mb4_unicode_ci"
_ESCAPE = "|"


def statement(
    fields: DevicesFields, only: Collection[str] | None, column: str = _IN_UNICODE
) -> tuple[str, tuple[Any, ...]]:
    """The statement of one page, and its arguments.

    Args:
        only: the keys of the devices that may be listed; None for all of them.
        column: how a text column is written where it is compared or sorted.
    """
    name, uuid = column.format("d.name"), column.format("d.uuid")
    conditions: list[tuple[str, tuple[Any, ...]]] = [("d.is_active <> 0", ())]
    if only is not None:
        conditions.append(("d.uuid IN %s", (tuple(only),)))
    if fields.query is not None:
        pattern = _containing(fields.query)
        conditions.append(
            (f"({name} LIKE %s ESCAPE '|' OR {uuid} LIKE %s ESCAPE '|')", (pattern, pattern))
        )
    if fields.room is not None:
        conditions.append((f"{column.format('d.room')} = %s", (fields.room,)))
    if fields.group is not None:
        conditions.append((f"{column.format('d.group_name')} = %s", (fields.group,)))
    if fields.online is not None:
        conditions.append((f"COALESCE(d.is_online, 0) {'<>' if fields.online else '='} 0", ()))
    if fields.after is not None:
        after = fields.after
        conditions.append((f"({name} > %s OR ({name} = %s AND {uuid} > %s))", (after.name, *after)))
    where = "\n           AND ".join(condition for condition, _ in conditions)
    arguments = [argument for _, some in conditions for argument in some]
    # One more than the page holds tells whether another follows.
    arguments.append(fields.limit + 1)
    return _PAGE.format(name=name, uuid=uuid, conditions=where), tuple(arguments)


def devices_of(rows: Iterable[Sequence[Any]]) -> list[ListedDevice]:
    """The rows of `statement`."""
    return [
        ListedDevice(
            text(uuid) or "", text(name) or "", flag(online), time(seen), *map(text, labels)
        )
        for uuid, name, online, seen, *labels in rows
    ]


class DeviceListReader:
    """Reads pages of the list, one after another."""

    def __init__(self, database: Database, timeout: float) -> None:
        self._database = database
        self._timeout = timeout
        self._turn = asyncio.Semaphore(1)
        # What stands for the columns that the tables lack.
        self._instead: list[tuple[str, str]] = []

    async def read(self, fields: DevicesFields, only: Collection[str] | None) -> list[ListedDevice]:
        """The devices of one page, and one more if another page follows.

        Raises:
            DatabaseTimeout: neither its turn nor the answer came within the time limit.
            DatabaseUnavailable: see `Database.fetch`.
        """
        sql, args = statement(fields, only)
        deadline = asyncio.get_running_loop().time() + self._timeout
        try:
            with self._database.deadlines.until(deadline):
                await self._turn.acquire()
        except TimeoutError:
            raise DatabaseTimeout() from None
        try:
            return devices_of(await self._rows(sql, args, deadline))
        finally:
            self._turn.release()

    async def _rows(self, sql: str, args: tuple[Any, ...], deadline: float) -> list[Row]:
        try:
            return await self._database.fetch(self._fitted(sql), args, deadline=deadline)
        except StatementRefused as refused:
            if refused.errno != _UNKNOWN_COLUMN:
                raise
        columns = await self._database.fetch(COLUMNS_THERE, deadline=deadline)
        there = {(str(row[0]).lower(), str(row[1]).lower()) for row in columns}
        self._instead = [change for column, change in _OPTIONAL.items() if column not in there]
        return await self._database.fetch(self._fitted(sql), args, deadline=deadline)

    def _fitted(self, sql: str) -> str:
        for column, instead in self._instead:
            sql = sql.replace(column, instead)
        return sql


def _containing(text: str) -> str:
    for special in (_ESCAPE, "%", "_"):
        text = text.replace(special, _ESCAPE + special)
    return f"%{text}%"
