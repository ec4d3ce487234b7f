"""`python run.py doctor`: what is wrong with settings, servers and port, and what to do about it.

`checks` lists them all, in order. Each is one function that looks at one thing and says what it
found, within a few seconds; one that needs another which failed is skipped, and says so.

Looking changes nothing. What is published is not retained, expires at once (MQTT 5), and goes where
the bridge may publish anyway, for a device and a requester that do not exist. A running bridge
keeps its requests: client ids and share are the doctor's own.
"""

import asyncio
import contextlib
import difflib
import errno
import ipaddress
import os
import re
import secrets
import socket
import ssl
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import aiohttp
import orjson
from dotenv import dotenv_values

from . import wire
from .access import Keys
from .database import Database, Row
from .errors import BridgeError, Text
from .link import REFUSED_FROM, BrokerAddress, Link, LinkError, tls_context
from .metrics import Metrics
from .once_mysql import CREATE_TABLE, TABLE
from .operations import OPERATIONS
from .settings import ENV_FILE, SECRET_NAMES, Settings, SettingsError
from .store import PROFILES, READINGS
from .topics import Topics

_WHOLE_SECONDS = 13.0
_CHECK_SECONDS = 4.0
_ANSWER_SECONDS = 3.0

# ---- what a check is ----------------------------------------------------------------------------

Level = Literal["ok", "note", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: one sentence, and what to do about it."""

    level: Level
    says: Text
    advice: tuple[Text, ...] = ()


@dataclass(slots=True)
class Examination:
    """What the checks share."""

    settings: Settings
    database: Database
    name: str = field(default_factory=lambda: f"doctor-{secrets.token_hex(4)}")


class Check(NamedTuple):
    """One thing to look at, once what it needs is sound, and where the settings ask for it."""

    subject: Text
    look: Callable[[Examination], Awaitable[Finding]]
    needs: tuple[Text, ...] = ()
    applies: Callable[[Settings], bool] = lambda _: True


_DATABASE = Text("数据库", "database")
_DATABASE_LOGIN = Text("数据库登录", "database login")
_SENSORS = Text("表 device_sensors", "table device_sensors")
_BROKER = Text("MQTT 服务器", "broker")
_BROKER_TLS = Text("MQTT 的 TLS", "broker TLS")
_BROKER_LOGIN = Text("MQTT 登录", "broker login")
_REPLY_TOPICS = Text("回复主题", "reply topics")
_COMMAND_TOPICS = Text("命令主题", "command topics")


def checks() -> tuple[Check, ...]:
    """All checks, in the order in which they are made."""
    logged_in, connected = (_DATABASE_LOGIN,), (_BROKER_LOGIN,)
    main, products = "device_main", "device_products"
    unreachable = Text("设备是否接收", "unreachable devices")
    return (
        Check(Text("配置", "settings"), _sources),
        Check(Text("配置名称", "names of settings"), _misspelt_names),
        Check(Text("API 密钥", "API keys"), _api_keys),
        Check(Text("工作进程", "workers"), _workers, (), lambda settings: settings.workers > 1),
        Check(_DATABASE, _database_reached),
        Check(_DATABASE_LOGIN, _database_login, (_DATABASE,)),
        Check(Text(f"表 {main}", f"table {main}"), partial(_table, main), logged_in),
        Check(_SENSORS, partial(_table, "device_sensors"), logged_in),
        Check(Text(f"表 {products}", f"table {products}"), partial(_table, products), logged_in),
        Check(Text(f"表 {TABLE}", f"table {TABLE}"), _once_table, logged_in, _keeps_ids_in_mysql),
        Check(Text("时间", "times"), _times, (_DATABASE_LOGIN, _SENSORS)),
        Check(_BROKER, _broker_reached),
        Check(_BROKER_TLS, _broker_tls, (_BROKER,), _uses_tls),
        Check(_BROKER_LOGIN, _broker_login, (_BROKER, _BROKER_TLS)),
        Check(Text("请求主题", "request topics"), _requests, connected),
        Check(_REPLY_TOPICS, _replies, connected),
        Check(_COMMAND_TOPICS, _commands, connected),
        Check(Text("在线状态主题", "presence topic"), _presence, connected),
        Check(Text("实例名", "instance"), _instance, connected),
        Check(Text("MQTT 速度", "broker speed"), _speed, (_BROKER_LOGIN, _REPLY_TOPICS)),
        Check(unreachable, _unreachable_devices, (_BROKER_LOGIN, _COMMAND_TOPICS)),
        Check(Text("端口", "port"), _port),
    )


async def examine(settings: Settings) -> int:
    """Make all checks and print what each found.

    Returns:
        The exit status: 0 when the bridge can work with these settings, 1 when it can't.
    """
    page = _Page(settings)
    # One connection, and no longer waits than a check may take.
    patient = settings.model_copy(
        update={"db_pool_size": 1, "db_timeout": min(settings.db_timeout, _ANSWER_SECONDS - 0.5)}
    )
    examination = Examination(settings, Database(patient, Metrics()))
    ends = asyncio.get_running_loop().time() + _WHOLE_SECONDS
    unsound: set[Text] = set()
    try:
        for check in checks():
            if check.applies(settings):
                finding = await _made(check, examination, unsound, ends)
                page.write(check.subject, finding)
                if finding.level in ("failed", "skipped"):
                    unsound.add(check.subject)
    finally:
        await examination.database.close(within=0.5)
    page.sum_up()
    return 1 if unsound else 0


async def _made(check: Check, examination: Examination, unsound: set[Text], ends: float) -> Finding:
    """What a check found, within its time and that of the whole."""
    for need in check.needs:
        if need in unsound:
            return _skipped(f"须先通过「{need.zh}」", f"'{need.en}' has to pass first")
    seconds = min(_CHECK_SECONDS, ends - asyncio.get_running_loop().time())
    if seconds <= 0:
        return _skipped("前面的检查耗尽了时间", "those before it used up the time")
    try:
        async with asyncio.timeout(seconds):
            return await check.look(examination)
    except TimeoutError:
        return _failed("没有及时回应", "no answer in time")
    except Exception as error:  # a doctor that breaks down helps no one
        words = f"{type(error).__name__}: {error}"
        return _failed(f"检查未能完成：{words}", f"it could not be checked: {words}")


# Advice is a line in two languages, or one that reads alike in both: a command, a setting.
Advice = Text | str


def _ok(zh: str, en: str) -> Finding:
    return Finding("ok", Text(zh, en))


def _note(zh: str, en: str, *advice: Advice) -> Finding:
    return Finding("note", Text(zh, en), tuple(map(_line, advice)))


def _failed(zh: str, en: str, *advice: Advice) -> Finding:
    return Finding("failed", Text(zh, en), tuple(map(_line, advice)))


def _skipped(zh: str, en: str) -> Finding:
    return Finding("skipped", Text(f"已跳过：{zh}", f"skipped: {en}"))


def _line(advice: Advice) -> Text:
    return Text(advice, advice) if isinstance(advice, str) else advice


# ---- settings -----------------------------------------------------------------------------------

_OUR_NAMES = frozenset(
    {name.upper() for name in Settings.model_fields} | {f"{name}_FILE" for name in SECRET_NAMES}
)
# What is called otherwise elsewhere; mere misspellings need no place here.
_OTHER_NAMES = {
    "DB_DATABASE": "DB_NAME",
    "MQTT_BROKER_PORT": "MQTT_PORT",
    "MQTT_CLIENT_ID": "MQTT_INSTANCE",
    "MQTT_HOST": "MQTT_BROKER",
    "MQTT_SERVER": "MQTT_BROKER",
}
_ALIKE = 0.77


async def _sources(_: Examination) -> Finding:
    """Where the settings come from: `.env` is looked for in the working folder alone."""
    path = Path.cwd() / ENV_FILE
    filed, environment = _given_names()
    # LANGUAGE is also gettext's, and tells of no one's having configured anything.
    ours = (_OUR_NAMES - {"LANGUAGE"}) & environment.keys()
    if not filed and ours:
        return _ok(f"来自环境变量（没有 {path}）", f"from the environment (there is no {path})")
    if not filed:
        return _note(
            f"没有 {path}，环境变量里也没有：全部是默认值",
            f"no {path}, and none in the environment: all are defaults",
            Text("在 .env 所在的目录运行；新建一份：", "run this where .env lies, or make one:"),
            "cp .env.example .env",
        )
    differing = sorted(
        name for name in filed.keys() & environment.keys() if filed[name] != environment[name]
    )
    if _OUR_NAMES.isdisjoint(differing):
        return _ok(f"来自 {path}", f"from {path}")
    names = ", ".join(_OUR_NAMES & set(differing))
    return _note(
        f"来自 {path}，但环境变量中的 {names} 与它不同",
        f"from {path}, but the environment has another {names}",
        Text(f"环境变量优先；若非本意：unset {names}", f"it wins; if not meant: unset {names}"),
    )


async def _misspelt_names(_: Examination) -> Finding:
    """Names that are nobody's, but nearly ours."""
    filed, environment = _given_names()
    given = filed.keys() | environment.keys()
    meant = {name: _name_meant(name, _OUR_NAMES - given) for name in sorted(given - _OUR_NAMES)}
    found = {name: ours for name, ours in meant.items() if ours is not None}
    if not found:
        return _ok("没有疑似拼错的", "none looks misspelt")
    names = ", ".join(found)
    questions = (
        Text(f"{name}：是 {ours} 吗？", f"{name}: is {ours} meant?") for name, ours in found.items()
    )
    return _note(f"{names} 不起作用", f"without effect: {names}", *questions)


def _name_meant(name: str, candidates: frozenset[str]) -> str | None:
    if _OTHER_NAMES.get(name) in candidates:
        return _OTHER_NAMES[name]
    # Kubernetes makes names like DB_SERVICE_HOST, which are no attempt at ours.
    near = [ours for ours in candidates if ours[0] == name[:1]]
    return next(iter(difflib.get_close_matches(name, near, n=1, cutoff=_ALIKE)), None)


def _given_names() -> tuple[dict[str, str], dict[str, str]]:
    """What `.env` and the environment hold, by names in capitals: case does not matter to us."""
    filed = dotenv_values(ENV_FILE, encoding="utf-8")
    return (
        {name.upper(): value or "" for name, value in filed.items()},
        {name.upper(): value for name, value in os.environ.items()},
    )


async def _api_keys(examination: Examination) -> Finding:
    port = examination.settings.service_port
    try:
        keys = Keys(examination.settings)
    except SettingsError as error:
        return _failed(str(error), str(error))
    if keys.required:
        return _ok("HTTP 接口需要密钥", "HTTP asks for one")
    return _note(
        f"没有：能访问端口 {port} 的任何人都可以控制设备",
        f"none: whoever reaches port {port} may control devices",
        Text("设置 API_KEYS=名称:密钥", "set API_KEYS=name:secret"),
    )


async def _workers(examination: Examination) -> Finding:
    settings = examination.settings
    if settings.dedup_store == "mysql":
        return _ok(f"{settings.workers} 个", str(settings.workers))
    return _note(
        "DEDUP_STORE=memory：重复的请求若由另一个进程收到，会再执行一次",
        "DEDUP_STORE=memory: a duplicate that another worker gets is executed again",
        Text("设置 DEDUP_STORE=mysql，然后建表：", "set DEDUP_STORE=mysql, and make its table:"),
        "python run.py init-db",
    )


# ---- reaching a server --------------------------------------------------------------------------


async def _reached(host: str, port: int, names: str, unit: str) -> Finding:
    """Whether something takes TCP connections there; each way to fail has its own sentence."""
    where = f"{host}:{port}"
    look = Text(f"核对 {names}", f"check {names}")
    try:
        await _connect(host, port)
    except socket.gaierror as error:
        why = error.strerror
        return _failed(f"找不到主机 {host}：{why}", f"the host {host} is not known: {why}", look)
    except ConnectionRefusedError:
        return _failed(
            f"{where} 拒绝连接：没有程序在那里监听",
            f"{where} refuses: nothing listens there",
            Text("服务在运行吗？", "is it running?"),
            f"sudo systemctl status {unit}",
            look,
        )
    except TimeoutError:
        return _failed(
            f"{where} 没有回应：主机没有开机，或被防火墙拦截",
            f"{where} does not answer: the machine is off, or a firewall drops what we send",
            look,
        )
    except OSError as error:
        words = error.strerror or str(error)
        return _failed(f"无法到达 {where}：{words}", f"{where} can't be reached: {words}", look)
    return _ok(f"{where} 可以连接", f"{where} takes connections")


async def _connect(host: str, port: int) -> None:
    """Open a TCP connection to one of a host's addresses, and close it.

    Raises:
        OSError: the most telling of what went wrong.
    """
    addresses = await _resolve(host, port)
    results = await asyncio.gather(*(_knock(*address) for address in addresses))
    errors = [error for error in results if error is not None]
    if len(errors) == len(results):
        raise next(
            (error for error in errors if isinstance(error, ConnectionRefusedError)), errors[0]
        )


async def _knock(family: int, address: Any) -> OSError | None:
    with socket.socket(family, socket.SOCK_STREAM) as door:
        door.setblocking(False)
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await asyncio.get_running_loop().sock_connect(door, address)
        except OSError as error:
            return error
    return None


async def _resolve(host: str, port: int) -> list[tuple[int, Any]]:
    """The addresses of a host, as (family, address).

    Looked up in a thread that is left behind if need be: the loop's own threads, with a resolver
    that hangs, would keep the program from ending.

    Raises:
        socket.gaierror: there are none, or the name server does not answer.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[tuple[int, Any]] | OSError] = loop.create_future()

    def settle(found: list[tuple[int, Any]] | OSError) -> None:
        if not answer.done():
            answer.set_result(found)

    def look_up() -> None:
        found: list[tuple[int, Any]] | OSError
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = [(info[0], info[4]) for info in infos]
        except UnicodeError:
            found = socket.gaierror(socket.EAI_NONAME, "not a host name")
        except OSError as error:
            found = error
        # The loop may have ended meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=look_up, name=f"resolve {host}", daemon=True).start()
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            found = await answer
    except TimeoutError:
        found = socket.gaierror(socket.EAI_AGAIN, "the name server does not answer")
    if isinstance(found, OSError):
        raise found
    return found


def _certificate_refused(error: ssl.SSLCertVerificationError, host: str, setting: str) -> Finding:
    """A certificate that does not verify; the codes are OpenSSL's (X509_V_ERR_…)."""
    match error.verify_code:
        case 9 | 10:
            return _failed(
                "服务器证书已过期，或尚未生效",
                "the server's certificate has expired, or is not valid yet",
                Text("更新证书，并核对两边的时钟", "renew it, and check the clocks on both sides"),
            )
        case 62 | 64:
            return _failed(
                f"服务器证书不是签发给 {host} 的",
                f"the server's certificate is not for {host}",
                Text("改用证书中的名称，或重新签发", "use the name in it, or issue a new one"),
            )
    return _failed(
        f"不信任服务器证书：{error.verify_message}",
        f"the server's certificate is not trusted: {error.verify_message}",
        Text(
            f"{setting}=签发它的 CA 证书（PEM）",
            f"{setting}=the CA certificate that signed it (PEM)",
        ),
    )


# ---- database -----------------------------------------------------------------------------------

_COLUMNS_THERE = """
SELECT column_name FROM information_schema.columns
 WHERE table_schema = DATABASE() AND table_name = %s
"""
_TIMES = "SELECT UNIX_TIMESTAMP(NOW(3)), (SELECT MAX(`timestamp`) FROM device_sensors)"
# By how much clocks may differ before anyone needs to be told.
_CLOCK_TOLERANCE = timedelta(seconds=60)


class _ServerError(Exception):
    """What the database server itself says, with its number."""

    def __init__(self, number: int, words: str) -> None:
        super().__init__(f"{words} ({number})")
        self.number = number


async def _ask(examination: Examination, sql: str, *args: object) -> list[Row]:
    """Rows from the database, over a pool like the bridge's own.

    Raises:
        _ServerError: the server refuses us, or the statement.
        OSError: it can't be reached, does not answer, or has no TLS that we trust.
    """
    deadline = asyncio.get_running_loop().time() + _ANSWER_SECONDS
    try:
        return await examination.database.fetch(sql, args, deadline=deadline)
    except BridgeError as error:
        # Callers of the bridge never see the driver's words; here they are what helps.
        raise _told_by_driver(error.__context__) from None


def _told_by_driver(error: BaseException | None) -> Exception:
    if error is not None and isinstance(error.__cause__, OSError):
        return error.__cause__
    if isinstance(error, Exception) and not isinstance(error, OSError):
        match error.args:
            case (int(number), words):
                # Its own numbers for a connection that fell silent or was cut.
                return TimeoutError() if number in (0, 2013) else _ServerError(number, str(words))
    return error if isinstance(error, Exception) else TimeoutError()


async def _database_reached(examination: Examination) -> Finding:
    settings = examination.settings
    names = "DB_HOST, DB_PORT" if settings.database_url is None else "DATABASE_URL"
    return await _reached(settings.database.host, settings.database.port, names, "mysql mariadb")


async def _database_login(examination: Examination) -> Finding:
    settings = examination.settings
    address = settings.database
    try:
        ((version, comment),) = await _ask(examination, "SELECT VERSION(), @@version_comment")
    except _ServerError as error:
        return _login_refused(error, settings)
    except ssl.SSLCertVerificationError as error:
        return _certificate_refused(error, address.host, "DB_TLS_CA")
    except ssl.SSLError as error:
        return _failed(
            f"DB_TLS_CA：没有建立 TLS：{error.reason}",
            f"DB_TLS_CA: no TLS came about: {error.reason}",
            Text(
                "数据库启用了 TLS 吗？那个文件是 PEM 证书吗？",
                "has the database TLS? Is that file a PEM certificate?",
            ),
        )
    except TimeoutError:
        return _failed(
            "接受连接，但没有回应：停住了，过载，或者不是 MySQL",
            "it takes the connection and says nothing: hung, overloaded, or no MySQL at all",
            "sudo systemctl restart mysql",
            Text("核对端口", "check the port"),
        )
    except RuntimeError as error:
        return _failed(
            f"驱动缺少组件：{error}",
            f"the driver lacks a package: {error}",
            "pip install cryptography",
        )
    product = "MariaDB" if "mariadb" in f"{version} {comment}".lower() else "MySQL"
    found = f"{address.user}@{address.name}, {product} {version}"
    return _ok(found, found)


def _login_refused(error: _ServerError, settings: Settings) -> Finding:
    address = settings.database
    if error.number in (1044, 1049):
        return _failed(
            f"没有数据库 {address.name}，或 {address.user} 无权使用：{error}",
            f"no database {address.name}, or none for {address.user}: {error}",
            Text("核对 DB_NAME；有哪些数据库：", "check DB_NAME; which databases are there:"),
            "SHOW DATABASES;",
            _grant(settings),
        )
    if error.number not in (1045, 1130, 1698, 3159):
        return _failed(f"登录失败：{error}", f"login failed: {error}")
    advice: list[Advice] = [
        Text("核对 DB_USER 和 DB_PASSWORD：", "check DB_USER and DB_PASSWORD:"),
        f"mysql -h {address.host} -P {address.port} -u {address.user} -p {address.name}",
        Text("该用户可以从这台主机登录吗？", "may that user come from this host?"),
        f"CREATE USER '{address.user}'@'%' IDENTIFIED BY '…';",
        _grant(settings),
    ]
    if not address.password:
        advice.insert(0, Text("DB_PASSWORD 是空的", "DB_PASSWORD is empty"))
    if settings.db_tls_ca is None:
        advice.append(
            Text(
                "要求 TLS 的 MariaDB（require_secure_transport）也这样回答：设置 DB_TLS_CA",
                "a MariaDB that requires TLS (require_secure_transport) says so too: set DB_TLS_CA",
            )
        )
    return _failed(f"登录被拒绝：{error}", f"login refused: {error}", *advice)


def _grant(settings: Settings, rights: str = "SELECT", table: str = "*") -> str:
    name, user = settings.database.name, settings.database.user
    return f"GRANT {rights} ON `{name}`.{table} TO '{user}'@'%';"


def columns_read() -> dict[str, list[str]]:
    """The columns of each table that the store's statements name, read off those statements."""
    columns: dict[str, set[str]] = {}
    for sql in (READINGS, PROFILES):
        tables = {alias: table for table, alias in re.findall(r"\b(device_\w+) ([a-z])\b", sql)}
        for alias, column in re.findall(r"\b([a-z])\.(\w+)", sql):
            columns.setdefault(tables[alias], set()).add(column)
    return {table: sorted(names) for table, names in columns.items()}


async def _table(table: str, examination: Examination) -> Finding:
    """Whether the columns that we read are there, and ours to read."""
    trouble = await _unreadable(examination, table, columns_read()[table])
    return trouble or _ok("可以读取", "may be read")


async def _unreadable(
    examination: Examination, table: str, columns: Sequence[str]
) -> Finding | None:
    """What keeps us from reading these columns; None when nothing does."""
    name = examination.settings.database.name
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
                return _failed(f"数据库 {name} 中没有这个表", f"there is none in {name}", theirs)
            case 1054:
                missing = ", ".join(await _missing(examination, table, columns))
                return _failed(f"缺少列：{missing}", f"columns are missing: {missing}", theirs)
            case 1142 | 1143:
                grant = _grant(examination.settings, table=table)
                return _failed(f"无权读取：{error}", f"we may not read it: {error}", grant)
        return _failed(f"不能读取：{error}", f"it can't be read: {error}")
    return None


async def _missing(examination: Examination, table: str, columns: Sequence[str]) -> list[str]:
    there = {str(name).lower() for (name,) in await _ask(examination, _COLUMNS_THERE, table)}
    return [column for column in columns if column.lower() not in there]


def _keeps_ids_in_mysql(settings: Settings) -> bool:
    return settings.dedup_store == "mysql"


async def _once_table(examination: Examination) -> Finding:
    """With `DEDUP_STORE=mysql`: whether our own table is there, and ours to write."""
    columns = re.findall(r"^    (\w+) [A-Z]+.* NULL", CREATE_TABLE, re.MULTILINE)
    trouble = await _unreadable(examination, TABLE, columns)
    try:
        # The rights are needed, and checked, though no row is touched.
        for statement in (
            f"INSERT INTO {TABLE} SELECT * FROM {TABLE} WHERE 1 = 0",  # noqa: S608
            f"UPDATE {TABLE} SET reply = reply WHERE 1 = 0",  # noqa: S608
            f"DELETE FROM {TABLE} WHERE 1 = 0",  # noqa: S608
        ):
            await _ask(examination, statement)
    except _ServerError as error:
        trouble = trouble or _failed(f"不能写入：{error}", f"it can't be written: {error}")
    if trouble is None:
        return _ok("可以读写", "may be read and written")
    rights = _grant(examination.settings, "SELECT, INSERT, UPDATE, DELETE", TABLE)
    return _failed(trouble.says.zh, trouble.says.en, "python run.py init-db", rights)


async def _times(examination: Examination) -> Finding:
    """Whether the times stored there mean what we take them for, as far as can be seen."""
    zone = examination.settings.timezone
    now = datetime.now(zone)
    ((seconds, newest),) = await _ask(examination, _TIMES)
    apart = abs(float(seconds) - now.timestamp())
    if apart > _CLOCK_TOLERANCE.total_seconds():
        return _note(
            f"数据库服务器与本机的时钟相差 {apart:.0f} 秒",
            f"the database server's clock and ours are {apart:.0f} s apart",
            Text("两边都启用时间同步（NTP）", "keep both on network time (NTP)"),
        )
    if newest is None:
        return _ok("时钟一致；还没有传感器数据", "the clocks agree; no sensor value is stored yet")
    if newest.replace(tzinfo=zone) > now + _CLOCK_TOLERANCE:
        return _note(
            f"最新的传感器数据（{newest}）在 {zone} 还没有到",
            f"the newest sensor value ({newest}) is still to come in {zone}",
            Text(
                "核对 DB_TIMEZONE，以及写入数据的服务",
                "check DB_TIMEZONE, and the service that stores it",
            ),
        )
    return _ok(f"时钟一致；最新的数据：{newest}", f"the clocks agree; newest value: {newest}")


# ---- broker -------------------------------------------------------------------------------------

# Of a device that does not exist.
_CONTROL_TOPIC = "devices/doctor-check/control"
_NO_SUBSCRIBERS = 0x10
# Nagle's algorithm waits for a delayed acknowledgement, which on Linux takes 40 ms.
_NAGLE_SECONDS = 0.02
_SLOW_SECONDS = 0.02
_ROUND_TRIPS = 7
_DELIVERY_SECONDS = 1.5
_RETAINED_SECONDS = 0.3


async def _broker_reached(examination: Examination) -> Finding:
    settings = examination.settings
    names = "MQTT_BROKER, MQTT_PORT"
    return await _reached(settings.mqtt_broker, settings.mqtt_port, names, "mosquitto")


def _uses_tls(settings: Settings) -> bool:
    return bool(settings.mqtt_tls or settings.mqtt_tls_ca or settings.mqtt_tls_cert)


async def _broker_tls(examination: Examination) -> Finding:
    settings = examination.settings
    host, port = settings.mqtt_broker, settings.mqtt_port
    try:
        context = tls_context(settings)
    except OSError as error:
        names = "MQTT_TLS_CA, MQTT_TLS_CERT, MQTT_TLS_KEY"
        return _failed(
            f"证书文件不能用：{error}",
            f"the certificate files can't be used: {error}",
            Text(f"核对 {names}（PEM）", f"check {names} (PEM)"),
        )
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
    except ssl.SSLCertVerificationError as error:
        return _certificate_refused(error, host, "MQTT_TLS_CA")
    except (OSError, EOFError) as error:
        words = str(error) or type(error).__name__
        return _failed(
            f"TLS 握手没有完成：{words}",
            f"the TLS handshake came to nothing: {words}",
            Text(
                "那个端口用 TLS 吗？核对 MQTT_PORT，或设 MQTT_TLS=false",
                "has that port TLS? Check MQTT_PORT, or set MQTT_TLS=false",
            ),
        )
    writer.transport.abort()
    return _ok("信任服务器证书", "the server's certificate is trusted")


async def _broker_login(examination: Examination) -> Finding:
    settings = examination.settings
    try:
        async with asyncio.timeout(_ANSWER_SECONDS), _connected(examination):
            user, protocol = settings.mqtt_username, f"MQTT {settings.mqtt_protocol}"
            return _ok(f"{user or '匿名'}，{protocol}", f"{user or 'anonymous'}, {protocol}")
    except TimeoutError:
        return _failed(
            "接受连接，但没有回应：停住了，或者不是 MQTT",
            "it takes the connection and says nothing: hung, or no MQTT broker at all",
            "sudo systemctl restart mosquitto",
            Text("核对 MQTT_PORT", "check MQTT_PORT"),
        )
    except LinkError as error:
        return _not_let_in(error, settings)


def _not_let_in(error: LinkError, settings: Settings) -> Finding:
    reason = _reason(error)
    match error.reason:
        case 0x84:
            return _failed(
                f"服务器不支持 MQTT {settings.mqtt_protocol}",
                f"the broker does not speak MQTT {settings.mqtt_protocol}",
                _other_protocol(settings),
            )
        case 0x86 | 0x87 if not settings.mqtt_username:
            return _failed(
                f"不允许匿名登录：{reason}",
                f"it lets no one in without a name: {reason}",
                Text("设置 MQTT_USERNAME 和 MQTT_PASSWORD", "set MQTT_USERNAME and MQTT_PASSWORD"),
            )
        case 0x86 | 0x87:
            return _failed(
                f"拒绝 {settings.mqtt_username} 登录：{reason}",
                f"it refuses {settings.mqtt_username}: {reason}",
                Text(
                    "核对 MQTT_USERNAME 和 MQTT_PASSWORD；重设：",
                    "check MQTT_USERNAME and MQTT_PASSWORD; to set it anew:",
                ),
                f"sudo mosquitto_passwd /etc/mosquitto/passwd {settings.mqtt_username}",
                "sudo systemctl reload mosquitto",
            )
        case int():
            return _failed(f"拒绝登录：{reason}", f"it refuses the login: {reason}")
    if "ALERT" in reason:
        return _failed(
            f"要求它信任的客户端证书：{reason}",
            f"it wants a client certificate that it trusts: {reason}",
            Text("设置 MQTT_TLS_CERT 和 MQTT_TLS_KEY", "set MQTT_TLS_CERT and MQTT_TLS_KEY"),
        )
    return _hung_up(reason, settings)


def _hung_up(reason: str, settings: Settings) -> Finding:
    other = _other_protocol(settings)
    advice: list[Advice] = [
        Text("核对 MQTT_PORT：那里是 MQTT 吗？", "check MQTT_PORT: is that MQTT?"),
        Text(f"不支持这个版本的 MQTT：{other}", f"not this version of MQTT: {other}"),
    ]
    if not _uses_tls(settings):
        advice.append(
            Text("要求 TLS 的端口：MQTT_TLS=true", "a port that wants TLS: MQTT_TLS=true")
        )
    elif settings.mqtt_tls_cert is None:
        advice.append(
            Text(
                "要求客户端证书：MQTT_TLS_CERT",
                "one that wants a client certificate: MQTT_TLS_CERT",
            )
        )
    return _failed(f"没有回答登录就断开：{reason}", f"it hangs up on our login: {reason}", *advice)


def _other_protocol(settings: Settings) -> str:
    return "MQTT_PROTOCOL=3.1.1" if settings.mqtt_protocol == "5" else "MQTT_PROTOCOL=5"


def _reason(error: LinkError) -> str:
    return str(error) if error.reason is None else f"{error} (0x{error.reason:02X})"


@contextlib.asynccontextmanager
async def _connected(
    examination: Examination, hear: Callable[[wire.Message], None] | None = None
) -> AsyncIterator[Link]:
    """A connection of the doctor's own, each under another client id.

    Raises:
        LinkError: the broker can't be reached, or refuses us.
    """

    def on_message(link: Link, message: wire.Message) -> None:
        if message.qos:
            link.acknowledge(message.packet_id)
        if hear is not None:
            hear(message)

    identifier = f"{examination.settings.instance}-doctor-{secrets.token_hex(4)}"
    address = BrokerAddress.of(examination.settings)
    link = Link(address, identifier=identifier, on_message=on_message)
    await link.open()
    try:
        yield link
    finally:
        await link.close()


async def _publish(link: Link, topic: str, payload: bytes = b"{}") -> int:
    """Publish what expires at once; the PUBACK's reason code.

    Raises:
        LinkError: the broker closed the connection, as some do instead of refusing.
    """
    acknowledged = link.publish(topic, payload, qos=1, properties=wire.properties(expiry=1))
    assert acknowledged is not None
    return await acknowledged


def _topic(examination: Examination, kind: Literal["reply", "status"]) -> str:
    return f"{examination.settings.mqtt_topic_prefix}/{kind}/{examination.name}"


def _acl(settings: Settings, rule: str) -> tuple[Advice, ...]:
    """What Mosquitto's ACL has to say."""
    user = (f"user {settings.mqtt_username}",) if settings.mqtt_username else ()
    return (
        Text("ACL（示例：deploy/mosquitto/acl）：", "ACL (sample: deploy/mosquitto/acl):"),
        *user,
        rule,
    )


async def _may_publish(examination: Examination, topic: str, rule: str) -> Finding:
    settings = examination.settings
    try:
        async with _connected(examination) as link:
            reason = await _publish(link, topic)
            refusal = f"0x{reason:02X}" if reason >= REFUSED_FROM else None
    except LinkError as error:
        refusal = _reason(error)
    if refusal is not None:
        return _failed(
            f"不能发布到 {topic}：{refusal}",
            f"we may not publish to {topic}: {refusal}",
            *_acl(settings, rule),
        )
    if settings.mqtt_protocol == "3.1.1":
        return _note(
            f"已发布到 {topic}，但 MQTT 3.1.1 看不出是否被拒绝",
            f"published to {topic}, but MQTT 3.1.1 does not tell a refusal",
            *_acl(settings, rule),
        )
    return _ok(f"可以发布到 {topic}", f"we may publish to {topic}")


async def _commands(examination: Examination) -> Finding:
    return await _may_publish(examination, _CONTROL_TOPIC, "topic write devices/+/control")


async def _replies(examination: Examination) -> Finding:
    prefix = examination.settings.mqtt_topic_prefix
    rule = f"topic write {prefix}/reply/#"
    return await _may_publish(examination, _topic(examination, "reply"), rule)


async def _presence(examination: Examination) -> Finding:
    """Not on the bridge's own topic: whoever watches that would believe what it reads."""
    settings = examination.settings
    prefix = settings.mqtt_topic_prefix
    rule = f"topic write {prefix}/status/+"
    finding = await _may_publish(examination, _topic(examination, "status"), rule)
    if finding.level != "failed":
        return finding
    own = f"{prefix}/status/{settings.instance}"
    enough = Text(f"如果只允许 {own}，也可以", f"if {own} alone is allowed, that will do")
    return _note(finding.says.zh, finding.says.en, *finding.advice, enough)


async def _instance(examination: Examination) -> Finding:
    """Whether a bridge is online under our name, as far as we may read its presence."""
    settings = examination.settings
    name, workers = settings.instance, settings.workers
    names = [name] if workers == 1 else [f"{name}-{number}" for number in range(1, workers + 1)]
    online = asyncio.Event()

    def hear(message: wire.Message) -> None:
        if _is_online(message.payload):
            online.set()

    async with _connected(examination, hear) as link:
        # `Link.subscribe` leaves stored messages at the broker; these are what we came for.
        await link._client.subscribe(
            [(f"{settings.mqtt_topic_prefix}/status/{name}", 1) for name in names]
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RETAINED_SECONDS):
                await online.wait()
    if not online.is_set():
        return _ok(f"没有看到在线的 {name}", f"no {name} is seen online")
    return _note(
        f"{name} 已经在线",
        f"{name} is online already",
        Text(
            "若不是您在运行的那个：换一个 MQTT_INSTANCE",
            "if it is not the one that you run: set another MQTT_INSTANCE",
        ),
    )


def _is_online(presence: bytes) -> bool:
    try:
        state = orjson.loads(presence)
    except orjson.JSONDecodeError:
        return False
    return isinstance(state, dict) and state.get("status") == "online"


async def _requests(examination: Examination) -> Finding:
    """Whether requests reach us: one for `health`, over a share of the doctor's own.

    Mosquitto accepts every subscription and looks at its ACL when it delivers, so that only a
    delivery proves anything. A bridge that runs gets that request too; no one hears its answer.
    """
    settings = examination.settings
    topics = Topics(
        settings.mqtt_topic_prefix, examination.name if settings.mqtt_share else "", "", ()
    )
    payload = orjson.dumps({"request_id": examination.name})
    heard = asyncio.Event()

    def hear(message: wire.Message) -> None:
        if message.payload == payload:
            heard.set()

    try:
        async with _connected(examination, hear) as link:
            await link.subscribe(topics.filters)
            sent = await _request_health(link, settings, payload)
            if sent:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_DELIVERY_SECONDS):
                        await heard.wait()
    except LinkError as error:
        return _not_subscribed(error, settings)
    if heard.is_set():
        how = f"MQTT_SHARE={settings.mqtt_share}"
        return _ok(f"可以收到请求（{how}）", f"requests arrive ({how})")
    rule = f"topic read {settings.mqtt_topic_prefix}/request/#"
    if sent and settings.mqtt_protocol == "5":
        return _failed(
            "订阅成功，但请求没有送达",
            "the broker takes the subscription, but delivers no request",
            *_acl(settings, rule),
        )
    return _note(
        "订阅成功；无法验证请求能否送达，因为我们不能自己发布请求",
        "the broker takes the subscription; that it delivers can't be proved, since we may not "
        "publish a request",
        *_acl(settings, rule),
    )


async def _request_health(link: Link, settings: Settings, payload: bytes) -> bool:
    """Ask for `health`; whether the broker takes that from us."""
    topic, user = f"{settings.mqtt_topic_prefix}/request/health", settings.mqtt_username
    # Where users may ask under their own name only, so may we.
    named = user and user not in OPERATIONS and not re.search(r"[+#/\x00-\x1f]", user)
    for candidate in (f"{topic}/{user}", topic) if named else (topic,):
        if await _publish(link, candidate, payload) < REFUSED_FROM:
            return True
    return False


def _not_subscribed(error: LinkError, settings: Settings) -> Finding:
    reason = _reason(error)
    advice = _acl(settings, f"topic read {settings.mqtt_topic_prefix}/request/#")
    plain = Text(
        "不支持共享订阅的服务器：MQTT_SHARE=（空）",
        "a broker without shared subscriptions: MQTT_SHARE= (empty)",
    )
    if settings.mqtt_share:
        advice = (plain,) if error.reason == 0x9E else (*advice, plain)
    return _failed(f"不能订阅请求：{reason}", f"we can't subscribe to requests: {reason}", *advice)


async def _speed(examination: Examination) -> Finding:
    """What a QoS 1 round trip takes, and whether Nagle's algorithm at the broker prolongs it.

    One message at a time never shows that: its PUBACK leaves at once, with nothing unacknowledged
    before it. Of two sent together, the second PUBACK waits until our machine has acknowledged the
    first, and TCP delays that.
    """
    topic = _topic(examination, "reply")
    async with _connected(examination) as link:
        alone = statistics.median([await _round_trip(link, topic, 1) for _ in range(_ROUND_TRIPS)])
        paired = statistics.median([await _round_trip(link, topic, 2) for _ in range(_ROUND_TRIPS)])
    took = f"{alone * 1000:.1f} ms"
    if paired - alone > _NAGLE_SECONDS:
        wait = f"{(paired - alone) * 1000:.0f} ms"
        return _note(
            f"QoS 1 往返 {took}，但两条接连时多等 {wait}：服务器的 Nagle 算法",
            f"QoS 1 round trip {took}, and {wait} more for two at once: Nagle at the broker",
            Text("加入 mosquitto.conf，然后重启：", "add to mosquitto.conf, and restart it:"),
            "set_tcp_nodelay true",
        )
    if alone > _SLOW_SECONDS:
        return _note(
            f"QoS 1 往返 {took}：每条命令至少等这么久",
            f"QoS 1 round trip {took}: every command waits for so long at least",
            Text(
                "服务器很远则正常；否则它过载了", "normal if it is far away; else it is overloaded"
            ),
        )
    return _ok(f"QoS 1 往返 {took}", f"QoS 1 round trip {took}")


async def _round_trip(link: Link, topic: str, count: int) -> float:
    """The seconds until `count` messages, sent together, are all acknowledged."""
    # The loop's clock may stand still for as long as a turn takes.
    started = time.perf_counter()
    await asyncio.gather(*(_publish(link, topic) for _ in range(count)))
    return time.perf_counter() - started


async def _unreachable_devices(examination: Examination) -> Finding:
    """Whether the broker says that no one hears a command (then we answer `device_unreachable`)."""
    if examination.settings.mqtt_protocol == "3.1.1":
        return _note(
            "MQTT 3.1.1 看不出命令有没有设备接收",
            "MQTT 3.1.1 does not tell whether any device gets a command",
        )
    async with _connected(examination) as link:
        control = await _publish(link, _CONTROL_TOPIC)
        reply = await _publish(link, _topic(examination, "reply"))
    if control == _NO_SUBSCRIBERS:
        return _ok("没有设备接收的命令会被发现", "a command that no device gets is noticed")
    if reply == _NO_SUBSCRIBERS:
        return _note(
            "有客户端订阅了所有设备的命令，因此看不出设备自己有没有接收",
            "some client subscribes to all devices' commands, which hides a device that does not",
            Text("让它订阅得窄一些（不用 devices/#）", "let it subscribe to less than devices/#"),
        )
    return _note(
        "服务器不说明命令有没有设备接收",
        "the broker does not tell whether any device gets a command",
    )


# ---- port ---------------------------------------------------------------------------------------


async def _port(examination: Examination) -> Finding:
    settings = examination.settings
    host, port = settings.service_host, settings.service_port
    where = f"{host}:{port}"
    try:
        for family, address in await _resolve(host, port):
            _bind(family, address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return await _taken(settings)
        words = error.strerror or str(error)
        return _failed(
            f"不能监听 {where}：{words}",
            f"we can't listen on {where}: {words}",
            Text(
                "核对 SERVICE_HOST（本机的地址）和 SERVICE_PORT（1024 以上）",
                "check SERVICE_HOST (an address of this machine) and SERVICE_PORT (1024 or more)",
            ),
        )
    return _ok(f"{where} 空闲", f"{where} is free")


def _bind(family: int, address: Any) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as door:
        if os.name == "posix":
            # As servers do: connections that have just ended are no obstacle.
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        door.bind(address)


async def _taken(settings: Settings) -> Finding:
    port = settings.service_port
    where = f"{settings.service_host}:{port}"
    health = await _health(settings)
    if health is not None:
        state = f"{health['version']}, {health['status']}"
        return _note(
            f"{where} 上已有一个桥接服务在运行（{state}）",
            f"a bridge is already running on {where} ({state})",
            Text("要再运行一个：换一个 SERVICE_PORT", "to run another: set another SERVICE_PORT"),
        )
    usual = Text(
        "占用 9001 的通常是 Mosquitto 的 WebSocket 监听，或旧的 plugin-backend 服务",
        "9001 is usually taken by Mosquitto's WebSocket listener, or by the old plugin-backend",
    )
    return _failed(
        f"{where} 被别的程序占用",
        f"another program has taken {where}",
        *((usual,) if port == 9001 else ()),
        f"sudo ss -ltnp 'sport = :{port}'",
        Text("停止它，或换一个 SERVICE_PORT", "stop it, or set another SERVICE_PORT"),
    )


async def _health(settings: Settings) -> dict[str, Any] | None:
    """What a bridge on our port says of its health; None when no bridge is there."""
    host = _nearest(settings.service_host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.service_port}/health"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session,
            session.get(url) as response,
        ):
            health = orjson.loads(await response.content.read(10_000))
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
    ours = {"status", "version", "mqtt", "uptime_seconds"}
    return health if isinstance(health, dict) and ours <= health.keys() else None


def _nearest(host: str) -> str:
    """Where a server that listens on `host` can be reached from here."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "::1"
    return host


# ---- the page -----------------------------------------------------------------------------------

_MARKS: dict[Level, str] = {"ok": "✓", "note": "!", "failed": "✗", "skipped": "-"}
_PLAIN_MARKS: dict[Level, str] = {"ok": "ok  ", "note": "note", "failed": "FAIL", "skipped": "skip"}


class _Page:
    """Standard output, in what it can show: some terminals lack the marks, or Chinese."""

    def __init__(self, settings: Settings) -> None:
        self._encoding = sys.stdout.encoding or "ascii"
        self._language = settings.language if self._shows("数据库") else "en"
        self._marks = _MARKS if self._shows("✓✗") else _PLAIN_MARKS
        self._counts = dict.fromkeys(_MARKS, 0)

    def write(self, subject: Text, finding: Finding) -> None:
        """One line, and what to do indented below it."""
        self._counts[finding.level] += 1
        mark = self._marks[finding.level]
        self._print(f"{mark} {subject.in_(self._language)}: {finding.says.in_(self._language)}")
        for line in finding.advice:
            self._print(f"{' ' * len(mark)}     {line.in_(self._language)}")

    def sum_up(self) -> None:
        """The last line."""
        failed, skipped, notes = (self._counts[level] for level in ("failed", "skipped", "note"))
        verdict = Text("桥接服务可以运行：python run.py", "The bridge can run: python run.py")
        if failed or skipped:
            verdict = Text(
                f"未通过 {failed} 项，跳过 {skipped} 项", f"{failed} failed, {skipped} skipped"
            )
        noted = Text(f"，提示 {notes} 项", f", {notes} to note") if notes else Text("", "")
        self._print("")
        self._print(verdict.in_(self._language) + noted.in_(self._language))

    def _print(self, line: str) -> None:
        try:
            print(line.encode(self._encoding, "replace").decode(self._encoding), flush=True)
        except BrokenPipeError:
            # Whoever read has seen enough (`| head`); the rest goes nowhere, in silence.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _shows(self, text: str) -> bool:
        try:
            text.encode(self._encoding)
        except UnicodeEncodeError:
            return False
        return True
