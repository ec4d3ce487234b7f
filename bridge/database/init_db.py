"""`python run.py init-db`: make our one table, and say which rights the bridge needs on it.

A table that an earlier version made serves as it is: its columns are the same.
"""

import asyncio
import sys

from ..errors import BridgeError, Text
from ..observability.metrics import Metrics
from ..settings import Settings
from .address import DatabaseAddress
from .idempotency_table import CREATE_TABLE, TABLE
from .pool import Database, StatementRefused

_MADE = Text(
    "表 {table} 已就绪。桥接服务的账号需要以下权限：",
    "The table {table} is ready. The database user of the bridge needs these rights:",
)
_NOT_MADE = Text(
    "无法建表。请让数据库管理员执行：",
    "The table could not be created. Ask a database administrator to run:",
)


_MAY_NOT = Text(
    "数据库可用，但账号 {user} 无权在 {name} 中建表",
    "The database is available, but the user {user} may not create tables in {name}",
)
# ER_DBACCESS_DENIED_ERROR, ER_TABLEACCESS_DENIED_ERROR, ER_SPECIFIC_ACCESS_DENIED_ERROR
_NO_RIGHT = frozenset({1044, 1142, 1227})


async def make_table(settings: Settings, *, print_only: bool) -> int:
    """Make the idempotency table, or print its SQL; the exit status, 0 or 1."""
    if print_only:
        print(_statements(settings))
        return 0
    database = Database(settings, Metrics())
    deadline = asyncio.get_running_loop().time() + 2 * settings.db_timeout
    try:
        await database.execute(CREATE_TABLE, deadline=deadline)
    except BridgeError as error:
        words = error.detail(settings.language)
        if isinstance(error, StatementRefused) and error.errno in _NO_RIGHT:
            address = DatabaseAddress.of(settings)
            user, name = address.user, address.name
            words = _MAY_NOT.in_(settings.language).format(user=user, name=name)
        print(words, file=sys.stderr)
        if database.last_trouble is not None:
            print(database.last_trouble, file=sys.stderr)
        print(_NOT_MADE.in_(settings.language), _statements(settings), sep="\n", file=sys.stderr)
        return 1
    finally:
        await database.close()
    print(_MADE.in_(settings.language).format(table=TABLE), _grant(settings), sep="\n")
    return 0


def _statements(settings: Settings) -> str:
    name = DatabaseAddress.of(settings).name
    return f"USE `{name}`;\n{CREATE_TABLE.strip()};\n{_grant(settings)}"


def _grant(settings: Settings) -> str:
    address = DatabaseAddress.of(settings)
    return (
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON `{address.name}`.`{TABLE}` "
        f"TO '{address.user}'@'%';"
    )
