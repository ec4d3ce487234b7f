"""Settings: the documented `.env` works, a bad value is told in one line, secrets never."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from bridge.database.address import DatabaseAddress
from bridge.http.authentication import read_keys
from bridge.settings import SECRET_NAMES, Settings, SettingsError, load
from tests.lab.bridge import PROJECT

# The block that the service's users have, as it is documented.
DOCUMENTED = """\
# 数据库连接（两种方式任选其一）

# 方式1：使用单独的配置项（推荐）
DB_HOST=localhost
DB_PORT=3306
DB_NAME=aiot
DB_USER=aiot_user
DB_PASSWORD=your_password

# 方式2：使用完整的连接字符串
# DATABASE_URL=mysql+pymysql://aiot_user:your_password@localhost:3306/aiot

# MQTT连接
MQTT_BROKER=localhost
MQTT_PORT=1883

# MQTT认证（可选，留空表示匿名访问）
MQTT_USERNAME=
MQTT_PASSWORD=

# 如果需要认证，填写用户名密码：
# MQTT_USERNAME=your_username
# MQTT_PASSWORD=your_password
"""

SECRET = "never-5een"
OURS = {name.upper() for name in Settings.model_fields}
OURS |= {f"{name}_FILE" for name in SECRET_NAMES}


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """An empty folder and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper() in OURS:
            monkeypatch.delenv(name)
    return tmp_path


def loaded(monkeypatch, **environment) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load()


def usable(settings: Settings) -> None:
    """What is looked into besides before anything is served."""
    DatabaseAddress.of(settings)
    read_keys(settings)


def test_documented_env_file_works_unchanged(surroundings):
    (surroundings / ".env").write_text(DOCUMENTED, encoding="utf-8")
    settings = load()
    address = ("localhost", 3306, "aiot", "aiot_user", "your_password")
    assert DatabaseAddress.of(settings)[:5] == address
    assert (settings.mqtt_broker, settings.mqtt_port) == ("localhost", 1883)
    assert settings.mqtt_username == ""
    assert settings.mqtt_password.get_secret_value() == ""
    assert (settings.service_host, settings.service_port) == ("0.0.0.0", 9001)


DEFAULTS = {
    "db_timeout": 3,
    "db_timezone": "Asia/Shanghai",
    "mqtt_protocol": "5",
    "mqtt_topic_prefix": "plugin",
    "mqtt_share": "bridge",
    "mqtt_session_expiry": 30,
    "mqtt_reply_topics": (),
    "service_host": "0.0.0.0",
    "service_port": 9001,
    "workers": 1,
    "max_in_flight": 256,
    "max_payload": 65536,
    "request_timeout": 8,
    "preset_timeout": 110,
    "control_expiry": 30,
    "dedup_ttl": 300,
    "dedup_store": "memory",
    "drain_timeout": 10,
    "cors_origins": (),
    "allowed_hosts": (),
    "device_list": "keys",
    "public_url": "",
    "language": "zh",
    "log_format": "text",
}


def test_defaults_are_those_of_the_contract():
    settings = load()
    assert {name: getattr(settings, name) for name in DEFAULTS} == DEFAULTS


def test_environment_wins_over_the_env_file(surroundings, monkeypatch):
    (surroundings / ".env").write_text("DB_HOST=filed\nDB_NAME=filed\n")
    settings = loaded(monkeypatch, DB_HOST="environment")
    assert (settings.db_host, settings.db_name) == ("environment", "filed")


def test_names_of_others_are_ignored(surroundings, monkeypatch):
    (surroundings / ".env").write_text("SECRET_KEY=x\nREDIS_URL=redis://\nDB_HOSTS=typo\n")
    assert loaded(monkeypatch, OPENAI_API_KEY="x").db_host == "localhost"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mysql://u:p@h:3307/d", ("h", 3307, "d", "u", "p")),
        ("mysql+pymysql://u:p@h/d", ("h", 3306, "d", "u", "p")),
        ("mysql+asyncmy://u:p@h:1/d?charset=utf8mb4", ("h", 1, "d", "u", "p")),
        ("mysql://u:p%40%2F%3A%23@h/d", ("h", 3306, "d", "u", "p@/:#")),
        ("mysql://u@h/d", ("h", 3306, "d", "u", "")),
        ("mysql://u:p@[::1]:3306/d", ("::1", 3306, "d", "u", "p")),
        ("mysql://u:密码@h/库", ("h", 3306, "库", "u", "密码")),
        ("mysql://u:p@ss%5Bw%5D@h/d", ("h", 3306, "d", "u", "p@ss[w]")),
    ],
)
def test_database_url_tells_the_address_and_wins(monkeypatch, url, address):
    settings = loaded(monkeypatch, DATABASE_URL=url, DB_HOST="other")
    assert DatabaseAddress.of(settings)[:5] == address


EMPTY = [
    ("DB_PORT", "db_port", 3306),
    ("DATABASE_URL", "database_url", None),
    ("MQTT_BROKER", "mqtt_broker", "localhost"),
    ("MQTT_TLS", "mqtt_tls", False),
    ("MQTT_TLS_CA", "mqtt_tls_ca", None),
    ("MQTT_INSTANCE", "mqtt_instance", ""),
    ("WORKERS", "workers", 1),
    ("LANGUAGE", "language", "zh"),
    ("MQTT_REPLY_TOPICS", "mqtt_reply_topics", ()),
    ("API_TRUSTED", "api_trusted", ()),
    # Where emptiness says something.
    ("MQTT_SHARE", "mqtt_share", ""),
    ("MQTT_USERNAME", "mqtt_username", ""),
    ("CORS_ORIGINS", "cors_origins", ()),
]


@pytest.mark.parametrize(("name", "field", "value"), EMPTY, ids=[case[0] for case in EMPTY])
def test_empty_value_means_the_default_unless_emptiness_says_something(
    monkeypatch, name, field, value
):
    assert getattr(loaded(monkeypatch, **{name: ""}), field) == value


SPELLINGS = [
    ("MQTT_TLS", "true", "mqtt_tls", True),
    ("MQTT_TLS", "0", "mqtt_tls", False),
    ("LOG_LEVEL", "debug", "log_level", "DEBUG"),
    ("DEDUP_STORE", "MySQL", "dedup_store", "mysql"),
    ("MQTT_PROTOCOL", "3.1.1", "mqtt_protocol", "3.1.1"),
    ("REQUEST_TIMEOUT", "0.5", "request_timeout", 0.5),
    ("MQTT_SESSION_EXPIRY", "0", "mqtt_session_expiry", 0),
    ("MQTT_REPLY_TOPICS", "a/#, +/b ,c", "mqtt_reply_topics", ("a/#", "+/b", "c")),
    ("LANGUAGE", "en", "language", "en"),
    ("DB_HOST", " db.local\r", "db_host", "db.local"),
    ("DB_HOST", '"db.local"', "db_host", "db.local"),
    ("MQTT_BROKER", "[::1]", "mqtt_broker", "::1"),
    ("MQTT_PORT", "'1884'\r", "mqtt_port", 1884),
    ("DB_PASSWORD", "p w\r", "db_password", SecretStr("p w")),
    ("DB_PASSWORD", "'p'", "db_password", SecretStr("'p'")),
    ("CORS_ORIGINS", "https://Panel.School/", "cors_origins", ("https://panel.school",)),
    ("CORS_ORIGINS", "http://10.0.0.5:80, *", "cors_origins", ("http://10.0.0.5", "*")),
    ("ALLOWED_HOSTS", "Bridge.School, b", "allowed_hosts", ("bridge.school", "b")),
    ("DEVICE_LIST", "Open", "device_list", "open"),
    ("PUBLIC_URL", "https://bridge.school/", "public_url", "https://bridge.school"),
]


@pytest.mark.parametrize(
    ("name", "text", "field", "value"), SPELLINGS, ids=[f"{c[0]}={c[1]}" for c in SPELLINGS]
)
def test_value_is_read_as_people_spell_it(monkeypatch, name, text, field, value):
    assert getattr(loaded(monkeypatch, **{name: text}), field) == value


@pytest.mark.parametrize("name", ["DB_PASSWORD", "DATABASE_URL", "MQTT_PASSWORD"])
@pytest.mark.parametrize("where", ["environment", ".env"])
def test_secret_may_come_as_a_file(surroundings, monkeypatch, name, where):
    value = f"mysql://u:{SECRET}@h/d" if name == "DATABASE_URL" else SECRET
    file = surroundings / "secret"
    file.write_text(value + "\n")
    if where == ".env":
        (surroundings / ".env").write_text(f"{name}_FILE={file}\n")
    else:
        monkeypatch.setenv(f"{name}_FILE", str(file))
    assert getattr(load(), name.lower()).get_secret_value() == value


def test_secret_given_itself_wins_over_its_file(surroundings, monkeypatch):
    (surroundings / "secret").write_text("filed")
    settings = loaded(monkeypatch, DB_PASSWORD="given", DB_PASSWORD_FILE="secret")
    assert settings.db_password.get_secret_value() == "given"


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("DB_PASSWORD_FILE", SECRET),
        ("MQTT_PASSWORD_FILE", f"{SECRET}\0"),
        ("DATABASE_URL_FILE", f"mysql://u:{SECRET}@h/d"),
        ("API_KEYS_FILE", f"admin:{SECRET}"),
    ],
)
def test_secret_file_that_is_not_there_is_told_without_what_may_be_the_secret(
    surroundings, name, given
):
    (surroundings / ".env").write_text(f"{name}={given}\n")
    with pytest.raises(SettingsError, match=rf"^{name}: 该文件") as refusal:
        load()
    assert SECRET not in str(refusal.value)


def test_instance_is_named_by_host_and_port_unless_told(monkeypatch):
    assert loaded(monkeypatch, SERVICE_PORT="9100").instance.endswith("-9100")
    assert loaded(monkeypatch, MQTT_INSTANCE="room-1").instance == "room-1"


MALFORMED = [
    ("DB_PORT", "abc"),
    ("DB_PORT", "0"),
    ("MQTT_PORT", "65536"),
    ("SERVICE_PORT", "9001x"),
    ("MQTT_PROTOCOL", "4"),
    ("MQTT_TLS", "perhaps"),
    ("MQTT_TLS_CA", "nowhere.pem"),
    # The key itself instead of its path.
    ("MQTT_TLS_KEY", SECRET),
    ("MQTT_TOPIC_PREFIX", "plug/+/in"),
    ("MQTT_TOPIC_PREFIX", "/plugin"),
    ("MQTT_TOPIC_PREFIX", "devices"),
    ("MQTT_TOPIC_PREFIX", "devices/school"),
    ("MQTT_SHARE", "a/b"),
    ("MQTT_INSTANCE", "a#"),
    ("MQTT_SESSION_EXPIRY", "-1"),
    ("MQTT_REPLY_TOPICS", "a/#/b"),
    ("MQTT_REPLY_TOPICS", "a+/b"),
    ("WORKERS", "0"),
    ("MAX_IN_FLIGHT", "many"),
    ("MAX_PAYLOAD", "0"),
    ("DB_TIMEOUT", "-1"),
    ("REQUEST_TIMEOUT", "nan"),
    ("PRESET_TIMEOUT", "inf"),
    ("DRAIN_TIMEOUT", "ten"),
    ("DEDUP_STORE", "redis"),
    ("DB_TIMEZONE", "Peking"),
    ("DATABASE_URL", f"postgres://u:{SECRET}@h/d"),
    ("DATABASE_URL", f"mysql://u:{SECRET}@h:port/d"),
    ("DATABASE_URL", f"mysql://u:{SECRET}@h"),
    # As urlsplit would not have them, and repeats them.
    ("DATABASE_URL", f"mysql://u:{SECRET}＠密码@h:3306/d"),
    ("DATABASE_URL", f"mysql://u:pa[{SECRET}]word@h:3306/d"),
    ("DATABASE_URL", f"mysql://u:{SECRET}]@h/d"),
    ("DATABASE_URL", f"mysql://u:{SECRET}[@h/d"),
    ("DATABASE_URL", f"mysql://u:{SECRET}/p@h/d"),
    ("DATABASE_URL", f"mysql://u:{SECRET}#p@h/d"),
    ("DATABASE_URL", f"mysql://u:p@h:{SECRET}/d"),
    # As it would have them, with part of the password for the database's name.
    ("DATABASE_URL", f"mysql://u:12/{SECRET}@h/d"),
    ("DATABASE_URL", f"mysql://u:12/{SECRET}@h"),
    ("DATABASE_URL", f"mysql://u/{SECRET}@h/d"),
    ("DB_HOST", f"mysql://u:{SECRET}@h/d"),
    ("MQTT_BROKER", f"mqtt://u:{SECRET}@h:1883"),
    ("MQTT_BROKER", f"u:{SECRET}@h"),
    ("API_KEYS", SECRET),
    ("API_KEYS", " , ,"),
    ("API_KEYS", f"a:{SECRET},a:{SECRET}"),
    ("API_KEYS", f"a:{SECRET},b c:{SECRET}"),
    ("API_TRUSTED", "10.0.0.0/33"),
    ("DB_TIMEZONE", "Asia/Beijing"),
    ("DB_HOST", "db:3306"),
    ("MQTT_BROKER", "broker:1883"),
    ("MQTT_BROKER", "two words"),
    ("SERVICE_HOST", '"0.0.0.0'),
    ("CORS_ORIGINS", "panel.school"),
    ("CORS_ORIGINS", "null"),
    ("CORS_ORIGINS", "https://panel.school/page"),
    ("CORS_ORIGINS", f"https://u:{SECRET}@panel.school"),
    ("DEVICE_LIST", "everyone"),
    ("PUBLIC_URL", "bridge.school"),
    ("LOG_LEVEL", "LOUD"),
    ("LOG_FORMAT", "xml"),
]


@pytest.mark.parametrize(("name", "value"), MALFORMED, ids=[f"{n}={v}" for n, v in MALFORMED])
def test_malformed_value_is_told_in_one_line_that_names_the_variable(monkeypatch, name, value):
    with pytest.raises(SettingsError) as refusal:
        usable(loaded(monkeypatch, **{name: value}))
    told = str(refusal.value)
    assert told.startswith(f"{name}: ")
    assert "\n" not in told
    assert SECRET not in told
    # Nor in what Python would print of it.
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__


def test_secrets_are_in_no_printed_form_of_the_settings(monkeypatch):
    settings = loaded(
        monkeypatch,
        DB_PASSWORD=SECRET,
        DATABASE_URL=f"mysql://u:{SECRET}@h/d",
        MQTT_PASSWORD=SECRET,
        API_KEYS=f"a:{SECRET}",
    )
    assert (
        SECRET
        not in f"{settings!r} {settings} {DatabaseAddress.of(settings)} {settings.model_dump()}"
    )


def run_py(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROJECT / "run.py")],
        cwd=folder,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SERVICE_PORT", "high"),
        ("DATABASE_URL", f"mysql://u:{SECRET}@h:x/d"),
        ("DATABASE_URL", f"mysql://u:{SECRET}＠123@localhost:3306/aiot"),
        ("DATABASE_URL", f"mysql://u:pa[{SECRET}]word@localhost:3306/aiot"),
        ("MQTT_PASSWORD_FILE", "nowhere"),
        ("API_KEYS_FILE", "nowhere"),
    ],
)
def test_malformed_value_stops_the_start_with_status_2(surroundings, name, value):
    done = run_py(surroundings, **{name: value})
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert name in line
    assert SECRET not in line


def test_env_file_that_is_no_text_stops_the_start_with_status_2(surroundings):
    (surroundings / ".env").write_bytes(b"DB_HOST=\xff\xfe\n")
    done = run_py(surroundings)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert ".env" in line


@pytest.mark.parametrize(
    ("environment", "filed", "language"),
    [
        ("en_US:en", "zh", "zh"),
        ("fr_FR:fr", "en", "en"),
        ("fr", None, "zh"),
        ("en", "zh", "en"),
        ("", "en", "en"),
    ],
)
def test_language_of_a_desktop_counts_only_if_it_is_one_of_ours(
    surroundings, monkeypatch, environment, filed, language
):
    if filed is not None:
        (surroundings / ".env").write_text(f"LANGUAGE={filed}\n")
    assert loaded(monkeypatch, LANGUAGE=environment).language == language


@pytest.mark.parametrize("value", ["fr", "zh_CN", "en_US:en"])
def test_language_in_the_env_file_is_one_of_ours(surroundings, value):
    (surroundings / ".env").write_text(f"LANGUAGE={value}\n")
    with pytest.raises(SettingsError, match=r"^LANGUAGE: 应为 zh、en 之一$"):
        load()


FAULTS = [
    ("DB_PORT", "abc", "应为整数", "must be a whole number"),
    ("DB_PORT", "0", "不能小于 1", "must be 1 or more"),
    ("DB_TIMEOUT", "soon", "应为数字", "must be a number"),
    ("DB_TIMEOUT", "-1", "应大于 0", "must be greater than 0"),
    ("MQTT_TLS", "perhaps", "应为 true 或 false", "must be true or false"),
    ("DEDUP_STORE", "redis", "应为 memory、mysql 之一", "must be one of memory, mysql"),
    (
        "DB_TIMEZONE",
        "Asia/Beijing",
        "没有时区 'Asia/Beijing'，请写 Asia/Shanghai 这样的名称",
        "unknown time zone 'Asia/Beijing'; use a name such as Asia/Shanghai",
    ),
    (
        "DB_TIMEZONE",
        "europe/berlim",
        "没有时区 'europe/berlim'，请写 Europe/Berlin 这样的名称",
        "unknown time zone 'europe/berlim'; use a name such as Europe/Berlin",
    ),
]


@pytest.mark.parametrize(("name", "value", "chinese", "english"), FAULTS)
def test_fault_is_told_in_our_words_and_the_reader_s_language(
    monkeypatch, name, value, chinese, english
):
    for language, words in (("zh", chinese), ("en", english)):
        with pytest.raises(SettingsError) as refusal:
            loaded(monkeypatch, LANGUAGE=language, **{name: value})
        assert str(refusal.value) == f"{name}: {words}"


@pytest.mark.parametrize(
    ("language", "words"),
    [("zh", r"^\.env: 第 2 行不是 名称=值"), ("en", r"^\.env: line 2 is not NAME=value")],
)
def test_line_of_the_env_file_that_can_not_be_read_is_named(
    surroundings, monkeypatch, language, words
):
    (surroundings / ".env").write_text(f'DB_HOST=db\nDB_PASSWORD="{SECRET}\n')
    with pytest.raises(SettingsError, match=words) as refusal:
        loaded(monkeypatch, LANGUAGE=language)
    assert SECRET not in str(refusal.value)


def test_env_file_of_a_windows_editor_is_read(surroundings):
    (surroundings / ".env").write_bytes(b"\xef\xbb\xbfDB_HOST=db\r\nDB_NAME=aiot2\r\n")
    settings = load()
    assert (settings.db_host, settings.db_name) == ("db", "aiot2")
