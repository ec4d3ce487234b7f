"""The database: whether it lets us in, and holds what we read and write."""

import asyncio
import re
import secrets
import ssl
from collections.abc import Sequence
from datetime import datetime, timedelta

from ..database.address import DatabaseAddress
from ..database.idempotency_table import ANSWERED, INTEND, LOOK, NOT_SENT, SWEEP, TABLE
from ..database.pool import Row
from ..database.statements import PROFILES, READINGS
from ..database.store import MysqlStore
from ..errors import BridgeError, Text
from ..observability.metrics import Metrics
from ..settings import Settings
from .connectivity import certificate_refused, server_reached
from .findings import ANSWER_SECONDS, Advice, Examination, Finding, failed, note, ok

_COLUMNS_THERE = """
SELECT column_name FROM information_schema.columns
 WHERE table_schema = DATABASE() AND table_name = %s
"""
_TIMES = "SELECT UNIX_TIMESTAMP(NOW(3)), (SELECT MAX(`timestamp`) FROM device_sensors)"
# A server with --read-only, --super-read-only, or in a read-only transaction.
_READ_ONLY = (1290, 1792, 1836)
# By how much clocks may differ before anyone needs to be told.
_CLOCK_TOLERANCE = timedelta(seconds=60)


class _ServerError(Exception):
    def __init__(self, number: int, words: str) -> None:
        super().__init__(f"{words} ({number})")
        self.number = number


async def _ask(examination: Examination, sql: str, *args: object) -> list[Row]:
    """Rows from the database, over a pool like the bridge's own; _ServerError or OSError."""
    deadline = asyncio.get_running_loop().time() + ANSWER_SECONDS
    try:
        return await examination.database.fetch(sql, args, deadline=deadline)
    except BridgeError:
        # Unlike a bridge's reply, the doctor shows the driver's message.
        raise _told_by_driver(examination.database.last_error) from None


def _told_by_driver(error: Exception | None) -> Exception:
    if error is not None and isinstance(error.__cause__, OSError):
        return error.__cause__
    if isinstance(error, Exception) and not isinstance(error, OSError):
        match error.args:
            case (int(number), words):
                # The driver's numbers for a connection that is silent or lost.
                return TimeoutError() if number in (0, 2013) else _ServerError(number, str(words))
    return error or TimeoutError()


async def reached(examination: Examination) -> Finding:
    settings = examination.settings
    names = "DB_HOST, DB_PORT" if settings.database_url is None else "DATABASE_URL"
    address = DatabaseAddress.of(settings)
    return await server_reached(address.host, address.port, names, "mysql mariadb")


async def login(examination: Examination) -> Finding:
    settings = examination.settings
    address = DatabaseAddress.of(settings)
    try:
        ((version, comment),) = await _ask(examination, "SELECT VERSION(), @@version_comment")
    except _ServerError as error:
        return _login_refused(error, settings)
    except ssl.SSLCertVerificationError as error:
        return certificate_refused(error, address.host, "DB_TLS_CA")
    except ssl.SSLError as error:
        return failed(
            f"DB_TLS_CA：没有建立 TLS：{error.reason}",
            f"DB_TLS_CA: no TLS came about: {error.reason}",
            Text(
                "数据库启用了 TLS 吗？那个文件是 PEM 证书吗？",
                "does the database use TLS? Is the file a PEM certificate?",
            ),
        )
    except TimeoutError:
        return failed(
            "接受连接，但没有回应：停住了，过载，或者不是 MySQL",
            "it takes the connection and says nothing: hung, overloaded, or no MySQL at all",
            "sudo systemctl restart mysql",
            Text("核对端口", "check the port"),
        )
    except RuntimeError as error:
        return failed(
            f"驱动缺少组件：{error}",
            f"the driver lacks a package: {error}",
            "pip install cryptography",
        )
    product = "MariaDB" if "mariadb" in f"{version} {comment}".lower() else "MySQL"
    found = f"{address.user}@{address.name}, {product} {version}"
    return ok(found, found)


def _login_refused(error: _ServerError, settings: Settings) -> Finding:
    address = DatabaseAddress.of(settings)
    if error.number in (1044, 1049):
        return failed(
            f"没有数据库 {address.name}，或 {address.user} 无权使用：{error}",
            f"no database {address.name}, or none for {address.user}: {error}",
            Text("核对 DB_NAME；列出现有的数据库：", "check DB_NAME; this lists the databases:"),
            "SHOW DATABASES;",
            _grant(settings),
        )
    if error.number not in (1045, 1130, 1698, 3159):
        return failed(f"登录失败：{error}", f"login failed: {error}")
    advice: list[Advice] = [
        Text("核对 DB_USER 和 DB_PASSWORD：", "check DB_USER and DB_PASSWORD:"),
        f"mysql -h {address.host} -P {address.port} -u {address.user} -p {address.name}",
        Text("该用户可以从这台主机登录吗？", "may this user log in from this host?"),
        f"CREATE USER '{address.user}'@'%' IDENTIFIED BY '…';",
        _grant(settings),
    ]
    if not address.password:
        advice.insert(0, Text("DB_PASSWORD 是空的", "DB_PASSWORD is empty"))
    if settings.db_tls_ca is None:
        advice.append(
            Text(
                "要求 TLS 的 MariaDB（require_secure_transport）也这样回答：设置 DB_TLS_CA",
                "MariaDB with require_secure_transport answers the same without TLS: set DB_TLS_CA",
            )
        )
    return failed(f"登录被拒绝：{error}", f"login refused: {error}", *advice)


def _grant(settings: Settings, rights: str = "SELECT", table: str = "*") -> str:
    address = DatabaseAddress.of(settings)
    return f"GRANT {rights} ON `{address.name}`.{table} TO '{address.user}'@'%';"


def columns_read() -> dict[str, list[str]]:
    """The columns of each table that the store's statements name, read off those statements."""
    columns: dict[str, set[str]] = {}
    for sql in (READINGS, PROFILES):
        tables = {alias: table for table, alias in re.findall(r"\b(device_\w+) ([a-z])\b", sql)}
        for alias, column in re.findall(r"\b([a-z])\.(\w+)", sql):
            columns.setdefault(tables[alias], set()).add(column)
    return {table: sorted(names) for table, names in columns.items()}


async def readable(table: str, examination: Examination) -> Finding:
    trouble = await _unreadable(examination, table, columns_read()[table])
    return trouble or ok("可以读取", "may be read")


async def _unreadable(
    examination: Examination, table: str, columns: Sequence[str]
) -> Finding | None:
    name = DatabaseAddress.of(examination.settings).name
    listed = ", ".join(f"`{column}`" for column in columns)
    theirs = Text(
        f"{name} 是平台的数据库吗？核对 DB_NAME",
        f"is {name} the platform's database? Check DB_NAME",
    )
    try:
        await _ask(examination, f"SELECT {listed} FROM `{table}` LIMIT 0")  # noqa: S608  our names
    except _ServerError as error:
        match error.number:
            case 1146:
                return failed(f"数据库 {name} 中没有这个表", f"there is none in {name}", theirs)
            case 1054:
                missing = ", ".join(await _missing(examination, table, columns))
                return failed(f"缺少列：{missing}", f"columns are missing: {missing}", theirs)
            case 1142 | 1143:
                grant = _grant(examination.settings, table=table)
                return failed(f"无权读取：{error}", f"we may not read it: {error}", grant)
        return failed(f"不能读取：{error}", f"it can't be read: {error}")
    return None


async def statements(examination: Examination) -> Finding:
    """Whether the bridge's statements run on these tables, for a device that is not there."""
    settings = examination.settings
    store = MysqlStore(examination.database, min(settings.db_timeout, ANSWER_SECONDS), Metrics())
    uuid = examination.name
    try:
        await store.sensors([(uuid, ("temperature", "温度"))])
        await store.readings(uuid)
        await store.profile(uuid)
        await store.controls(uuid)
    except BridgeError:
        error = _told_by_driver(examination.database.last_error)
        return failed(
            f"数据库拒绝了桥接服务的查询：{error}",
            f"the database refuses a statement of the bridge: {error}",
            Text(
                "核对表的字符集和排序规则：", "look at the tables' character sets and collations:"
            ),
            "SHOW CREATE TABLE device_main; SHOW CREATE TABLE device_sensors;",
        )
    finally:
        await store.close()
    return ok("可以执行", "they can be executed")


async def _missing(examination: Examination, table: str, columns: Sequence[str]) -> list[str]:
    there = {str(name).lower() for (name,) in await _ask(examination, _COLUMNS_THERE, table)}
    return [column for column in columns if column.lower() not in there]


def keeps_ids_in_mysql(settings: Settings) -> bool:
    return settings.dedup_store == "mysql"


async def once_table(examination: Examination) -> Finding:
    """With `DEDUP_STORE=mysql`: whether our own statements do their work on our own table.

    They are those of a command that sends nothing, under an id that no request can have had; the
    row is gone afterwards.
    """
    name, attempt = secrets.token_bytes(16), secrets.token_bytes(8)
    owner = (name, bytes(16), attempt, examination.name)
    try:
        await _ask(examination, INTEND, *owner, 1.0, 1.0, attempt)
        await _ask(examination, ANSWERED, *owner, 1.0, b"{}")
        rows = await _ask(examination, LOOK, (name,))
        await _ask(examination, NOT_SENT, (name,), (attempt,))
        await _ask(examination, SWEEP, 1)
    except _ServerError as error:
        return _ids_not_kept(examination, error)
    if len(rows) != 1:
        return failed("写入的内容读不出来", "what was written can't be read back")
    return ok("可以读写", "may be read and written")


def _ids_not_kept(examination: Examination, error: _ServerError) -> Finding:
    address = DatabaseAddress.of(examination.settings)
    if error.number in _READ_ONLY:
        return failed(
            f"{address.host} 是只读副本：{error}",
            f"{address.host} is a read-only replica: {error}",
            Text(
                "DB_HOST 须指向可写的主库，或设置 DEDUP_STORE=memory",
                "set DB_HOST to the primary, which is writable, or set DEDUP_STORE=memory",
            ),
        )
    rights = _grant(examination.settings, "SELECT, INSERT, UPDATE, DELETE", TABLE)
    return failed(
        f"不能读写：{error}",
        f"it can't be read and written: {error}",
        "python run.py init-db",
        rights,
    )


async def times(examination: Examination) -> Finding:
    """Whether the times stored there mean what we take them for, as far as can be seen."""
    zone = examination.settings.timezone
    now = datetime.now(zone)
    ((seconds, newest),) = await _ask(examination, _TIMES)
    apart = abs(float(seconds) - now.timestamp())
    if apart > _CLOCK_TOLERANCE.total_seconds():
        return note(
            f"数据库服务器与本机的时钟相差 {apart:.0f} 秒",
            f"the database server's clock and ours are {apart:.0f} s apart",
            Text("两边都启用时间同步（NTP）", "synchronize both clocks (NTP)"),
        )
    if newest is None:
        return ok("时钟一致；还没有传感器数据", "the clocks agree; no sensor value is stored yet")
    if newest.replace(tzinfo=zone) > now + _CLOCK_TOLERANCE:
        return note(
            f"最新的传感器数据（{newest}）在 {zone} 还没有到",
            f"the newest sensor value ({newest}) is still to come in {zone}",
            Text(
                "核对 DB_TIMEZONE，以及写入数据的服务",
                "check DB_TIMEZONE, and the service that stores the values",
            ),
        )
    return ok(f"时钟一致；最新的数据：{newest}", f"the clocks agree; newest value: {newest}")
