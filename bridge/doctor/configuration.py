"""The settings as they are written: where they come from, and what they leave open."""

import difflib
from pathlib import Path

from ..errors import Text
from ..http.authentication import Keys
from ..settings import ENV_FILE, SECRET_NAMES, Settings, SettingsError, written_names
from .findings import Examination, Finding, failed, note, ok

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


async def sources(_: Examination) -> Finding:
    """Where the settings come from: `.env` is looked for in the working folder alone."""
    path = Path.cwd() / ENV_FILE
    filed, environment = written_names()
    # LANGUAGE is gettext's too, and may be set without anyone having configured the bridge.
    ours = (_OUR_NAMES - {"LANGUAGE"}) & environment.keys()
    if not filed and ours:
        return ok(f"来自环境变量（没有 {path}）", f"from the environment (there is no {path})")
    if not filed:
        return note(
            f"没有 {path}，环境变量里也没有：全部是默认值",
            f"no {path}, and none in the environment: all are defaults",
            Text(
                "请在 .env 所在的目录运行，或新建一份：",
                "run this in the folder of .env, or create it:",
            ),
            "cp .env.example .env",
        )
    differing = sorted(
        name for name in filed.keys() & environment.keys() if filed[name] != environment[name]
    )
    if _OUR_NAMES.isdisjoint(differing):
        return ok(f"来自 {path}", f"from {path}")
    names = ", ".join(_OUR_NAMES & set(differing))
    return note(
        f"来自 {path}，但环境变量中的 {names} 与它不同",
        f"from {path}, but the environment has another {names}",
        Text(
            f"环境变量优先；若非本意：unset {names}",
            f"the environment takes precedence; if you do not want it: unset {names}",
        ),
    )


async def misspelt_names(_: Examination) -> Finding:
    filed, environment = written_names()
    written = filed.keys() | environment.keys()
    meant = {name: _name_meant(name, _OUR_NAMES - written) for name in sorted(written - _OUR_NAMES)}
    found = {name: ours for name, ours in meant.items() if ours is not None}
    if not found:
        return ok("没有疑似拼错的", "none looks misspelt")
    names = ", ".join(found)
    questions = (
        Text(f"{name}：是 {ours} 吗？", f"{name}: did you mean {ours}?")
        for name, ours in found.items()
    )
    return note(f"{names} 不起作用", f"without effect: {names}", *questions)


def _name_meant(name: str, candidates: frozenset[str]) -> str | None:
    if _OTHER_NAMES.get(name) in candidates:
        return _OTHER_NAMES[name]
    # Kubernetes sets names like DB_SERVICE_HOST, which are not misspelt.
    near = [ours for ours in candidates if ours[0] == name[:1]]
    return next(iter(difflib.get_close_matches(name, near, n=1, cutoff=_ALIKE)), None)


async def api_keys(examination: Examination) -> Finding:
    port = examination.settings.service_port
    try:
        keys = Keys(examination.settings)
    except SettingsError as error:
        return failed(str(error), str(error))
    if keys.required:
        return ok("HTTP 接口需要密钥", "HTTP asks for one")
    return note(
        f"没有，对所有人开放：能访问端口 {port} 的任何人都可以控制设备",
        f"none, so that it is open to everyone: whoever reaches port {port} may control devices",
        Text("设置 API_KEYS=名称:密钥", "set API_KEYS=name:secret"),
    )


async def workers(examination: Examination) -> Finding:
    settings = examination.settings
    if settings.dedup_store == "mysql":
        return ok(f"{settings.workers} 个", str(settings.workers))
    return note(
        "DEDUP_STORE=memory：重复的请求若由另一个进程收到，会再执行一次",
        "DEDUP_STORE=memory: a duplicate that another worker gets is executed again",
        Text("设置 DEDUP_STORE=mysql，然后建表：", "set DEDUP_STORE=mysql, and create its table:"),
        "python run.py init-db",
    )
