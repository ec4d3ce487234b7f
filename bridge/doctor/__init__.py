"""`python run.py doctor`: what is wrong with settings, servers and port, and what to do about it.

`checks` lists them all, in order. Each is one function that looks at one thing and says what it
found, within a few seconds; one that needs another which failed is skipped, and says so.

Looking changes nothing. What is published is not retained, expires at once (MQTT 5), and goes where
the bridge may publish anyway, for a device and a requester that do not exist. A running bridge
keeps its requests: client ids and share are the doctor's own.
"""

import asyncio
from functools import partial

from ..database.idempotency_table import TABLE
from ..database.pool import Database
from ..errors import Text
from ..observability.metrics import Metrics
from ..settings import Settings
from . import broker, configuration, database, port, subscription, traffic
from .database import columns_read
from .findings import ANSWER_SECONDS, Check, Examination, Finding, failed, skipped
from .limits import limits
from .page import Page

__all__ = ["checks", "columns_read", "examine"]

_WHOLE_SECONDS = 13.0
_CHECK_SECONDS = 4.0

_DATABASE = Text("数据库", "database")
_DATABASE_LOGIN = Text("数据库登录", "database login")
_TABLES = ("device_main", "device_sensors", "device_products")
_BROKER = Text("MQTT 服务器", "broker")
_BROKER_TLS = Text("MQTT 的 TLS", "broker TLS")
_BROKER_LOGIN = Text("MQTT 登录", "broker login")
_REPLY_TOPICS = Text("回复主题", "reply topics")
_COMMAND_TOPICS = Text("命令主题", "command topics")


def _table(name: str) -> Text:
    return Text(f"表 {name}", f"table {name}")


def checks() -> tuple[Check, ...]:
    """All checks, in the order in which they are made."""
    logged_in, connected = (_DATABASE_LOGIN,), (_BROKER_LOGIN,)
    unreachable = Text("设备是否接收", "unreachable devices")
    return (
        Check(Text("配置", "settings"), configuration.sources),
        Check(Text("配置名称", "names of settings"), configuration.misspelt_names),
        Check(Text("API 密钥", "API keys"), configuration.api_keys),
        Check(
            Text("工作进程", "workers"),
            configuration.workers,
            (),
            lambda settings: settings.workers > 1,
        ),
        Check(_DATABASE, database.reached),
        Check(_DATABASE_LOGIN, database.login, (_DATABASE,)),
        *(Check(_table(name), partial(database.readable, name), logged_in) for name in _TABLES),
        Check(
            _table(TABLE),
            database.once_table,
            logged_in,
            database.keeps_ids_in_mysql,
        ),
        Check(Text("查询", "statements"), database.statements, tuple(map(_table, _TABLES))),
        Check(Text("时间", "times"), database.times, (_DATABASE_LOGIN, _table("device_sensors"))),
        Check(_BROKER, broker.reached),
        Check(_BROKER_TLS, broker.tls, (_BROKER,), broker.uses_tls),
        Check(_BROKER_LOGIN, broker.login, (_BROKER, _BROKER_TLS)),
        Check(Text("服务器限制", "broker limits"), limits, connected),
        Check(Text("请求主题", "request topics"), subscription.requests, connected),
        Check(_REPLY_TOPICS, traffic.replies, connected),
        Check(_COMMAND_TOPICS, traffic.commands, connected),
        Check(Text("在线状态主题", "presence topic"), traffic.presence, connected),
        Check(Text("实例名", "instance"), traffic.instance, connected),
        Check(Text("MQTT 速度", "broker speed"), traffic.speed, (_BROKER_LOGIN, _REPLY_TOPICS)),
        Check(unreachable, traffic.unreachable_devices, (_BROKER_LOGIN, _COMMAND_TOPICS)),
        Check(Text("端口", "port"), port.free),
    )


async def examine(settings: Settings) -> int:
    """Make all checks and print what each found.

    The exit status: 0 when the bridge can work with these settings, 1 when it can't.
    """
    page = Page(settings)
    # One connection, and no longer waits than a check may take.
    patient = settings.model_copy(
        update={"db_pool_size": 1, "db_timeout": min(settings.db_timeout, ANSWER_SECONDS - 0.5)}
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
    for need in check.needs:
        if need in unsound:
            return skipped(f"须先通过「{need.zh}」", f"'{need.en}' has to pass first")
    seconds = min(_CHECK_SECONDS, ends - asyncio.get_running_loop().time())
    if seconds <= 0:
        return skipped("前面的检查耗尽了时间", "those before it used up the time")
    try:
        async with asyncio.timeout(seconds):
            return await check.look(examination)
    except TimeoutError:
        return failed("没有及时回应", "no answer in time")
    except Exception as error:  # a doctor that breaks down helps no one
        words = f"{type(error).__name__}: {error}"
        return failed(f"检查未能完成：{words}", f"it could not be checked: {words}")
