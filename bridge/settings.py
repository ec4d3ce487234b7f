"""Settings: read once from the environment and `.env`, validated, secrets hidden.

The environment wins over `.env`. A secret may also come as `NAME_FILE`, the path of a file that
holds it. An empty value means the default, except where emptiness says something (an empty
`MQTT_SHARE` is a plain subscription). Names that are not ours are ignored.
"""

import difflib
import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from functools import cached_property, partial
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from .errors import Language, Text, UnusableValue, fault_text

ENV_FILE = ".env"
SECRET_NAMES = ("DB_PASSWORD", "DATABASE_URL", "MQTT_PASSWORD", "API_KEYS")
# Emptiness is a value of its own in these.
MEANINGFUL_WHEN_EMPTY = frozenset(
    {"mqtt_share", "mqtt_username", "mqtt_password", "db_password", "api_keys", "cors_origins"}
)
LANGUAGES = ("zh", "en")

# Of a file that holds a secret. Its path is not repeated: some give the secret itself there.
UNREADABLE = Text("该文件无法作为文本读取", "the file can't be read as text")
_NOT_TEXT = Text("该文件不是 UTF-8 文本", "the file is not UTF-8 text")
_NO_SETTING = Text(
    "第 {} 行不是 名称=值；请检查引号", "line {} is not NAME=value; check its quotes"
)
# What stands before an IPv4 address in IPv6 (::ffff:10.0.0.1).
_MAPPED_BITS = 96
_TOPIC_LEVEL = re.compile(r"[^\x00-\x1f\x7f/+#$ ]+")
# What people write for China's time, which has no such name in the database of time zones.
_CHINAS_TIME = re.compile(
    r"(asia/)?(beijing|peking|china)|cst|(utc|gmt)?\+0?8(:?00)?", re.IGNORECASE
)


class SettingsError(Exception):
    """Settings that can't be used; the message is one line that names the variables."""


def _parts(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _network(text: object) -> object:
    """A network, or a single address; bits beyond the mask don't matter."""
    try:
        network = ipaddress.ip_network(str(text), strict=False)
    except ValueError:
        raise UnusableValue(
            f"{text!r} 既不是 IP 地址，也不是 10.0.0.0/8 这样的网段",
            f"{text!r} is neither an IP address nor a network like 10.0.0.0/8",
        ) from None
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= _MAPPED_BITS:
        return ipaddress.ip_network(f"{mapped}/{network.prefixlen - _MAPPED_BITS}")
    return network


def _host(value: str) -> str:
    # Hosts are logged, and where somebody wrote a URL its password would be too.
    bare = value[1:-1] if value[:1] + value[-1:] == "[]" else value
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        if re.search(r"[\s/@:,\"'\[\]]", value):
            raise UnusableValue(
                "应为主机名或 IP 地址；端口写在对应的 _PORT 配置项中",
                "must be a host name or an IP address; the port belongs in the setting with _PORT",
            ) from None
    return value


def _origin(value: str) -> str:
    """An origin as browsers send it: `scheme://host[:port]`."""
    if value == "*":
        return value
    try:
        parts = urlsplit(value.lower())
        host, port = parts.netloc, parts.port
    except ValueError:
        host, port = "", None
    if parts.scheme not in ("http", "https") or not host or "@" in host or parts.path.strip("/"):
        raise UnusableValue(
            "应为网页来源，例如 https://panel.school.example 或 http://192.168.1.5:8080",
            "must be origins such as https://panel.school.example or http://192.168.1.5:8080",
        )
    usual = (parts.scheme, port) in (("http", 80), ("https", 443))
    return f"{parts.scheme}://{host.rpartition(':')[0] if usual else host}"


def _public_url(value: str) -> str:
    if value and urlsplit(value).scheme not in ("http", "https"):
        raise UnusableValue(
            "应为网址，例如 https://bridge.school.example",
            "must be a URL such as https://bridge.school.example",
        )
    return value.rstrip("/")


def _levels(value: str, most: int = 99) -> str:
    levels = value.split("/") if value else []
    is_boards = levels[:1] == ["devices"]
    if is_boards or len(levels) > most or not all(map(_TOPIC_LEVEL.fullmatch, levels)):
        raise UnusableValue(
            "不能含有 +、#、$、空格和空的主题层级，不能以 devices 开头；MQTT_SHARE 还不能含有 /",
            "must not contain +, #, $, spaces or empty topic levels, nor begin with devices, where "
            "the boards are, and MQTT_SHARE no / either",
        )
    return value


def _topic_filter(topic_filter: str) -> str:
    *parents, last = topic_filter.split("/")
    misplaced = any("#" in level for level in parents) or ("#" in last and last != "#")
    partial = any("+" in level and level != "+" for level in (*parents, last))
    if misplaced or partial:
        raise UnusableValue(
            f"{topic_filter!r} 不是 MQTT 主题过滤器",
            f"{topic_filter!r} is not an MQTT topic filter",
        )
    return topic_filter


def _zone(value: str) -> str:
    known = available_timezones()
    if value in known:
        return value
    meant = difflib.get_close_matches(value.title(), known, n=1, cutoff=0.8)
    name = "Asia/Shanghai" if _CHINAS_TIME.fullmatch(value) or not meant else meant[0]
    raise UnusableValue(
        f"没有时区 {value!r}，请写 {name} 这样的名称",
        f"unknown time zone {value!r}; use a name such as {name}",
    )


def _readable(path: Path, *, is_secret: bool = False) -> Path:
    if not os.access(path, os.R_OK):
        if is_secret:
            raise UnusableValue(UNREADABLE.zh, UNREADABLE.en)
        raise UnusableValue(f"无法读取文件 {str(path)!r}", f"the file {str(path)!r} can't be read")
    return path


def _spelt(convert: Any) -> BeforeValidator:
    return BeforeValidator(lambda value: convert(value) if isinstance(value, str) else value)


_PARTS, _LOWER, _UPPER = BeforeValidator(_parts), _spelt(str.lower), _spelt(str.upper)
_Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network)]
Networks = Annotated[tuple[_Network, ...], _PARTS]
Origins = Annotated[tuple[Annotated[str, AfterValidator(_origin)], ...], _PARTS]
TopicFilters = Annotated[tuple[Annotated[str, AfterValidator(_topic_filter)], ...], _PARTS]
HostNames = Annotated[tuple[str, ...], _PARTS, _LOWER]
Host = Annotated[str, AfterValidator(_host)]
Topic = Annotated[str, AfterValidator(_levels)]
TopicLevel = Annotated[str, AfterValidator(partial(_levels, most=1))]
ReadableFile = Annotated[Path, AfterValidator(_readable)] | None
ReadableSecretFile = Annotated[Path, AfterValidator(partial(_readable, is_secret=True))] | None
TimeZone = Annotated[str, AfterValidator(_zone)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]


class Settings(BaseModel):
    """Every setting of the bridge; the field's name in capitals is the variable's."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    db_host: Host = "localhost"
    db_port: Port = 3306
    db_name: str = "aiot"
    db_user: str = "aiot_user"
    db_password: SecretStr = SecretStr("")
    database_url: SecretStr | None = None
    db_pool_size: Annotated[int, Field(ge=1, le=100)] = 5
    db_timeout: Seconds = 3.0
    db_timezone: TimeZone = "Asia/Shanghai"
    db_tls_ca: ReadableFile = None

    mqtt_broker: Host = "localhost"
    mqtt_port: Port = 1883
    mqtt_username: str = ""
    mqtt_password: SecretStr = SecretStr("")
    mqtt_tls: bool = False
    mqtt_tls_ca: ReadableFile = None
    mqtt_tls_cert: ReadableFile = None
    mqtt_tls_key: ReadableSecretFile = None
    mqtt_protocol: Literal["5", "3.1.1"] = "5"
    mqtt_topic_prefix: Topic = "plugin"
    mqtt_share: TopicLevel = "bridge"
    mqtt_instance: Topic = ""
    mqtt_session_expiry: Annotated[int, Field(ge=0, le=0xFFFFFFFE)] = 30
    mqtt_reply_topics: TopicFilters = ()

    service_host: Host = "0.0.0.0"  # noqa: S104  documented: plugin-service may live elsewhere
    service_port: Port = 9001
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    max_in_flight: Annotated[int, Field(ge=1, le=60000)] = 256
    max_payload: Annotated[int, Field(ge=256, le=16 * 1024 * 1024)] = 64 * 1024
    request_timeout: Seconds = 8.0
    preset_timeout: Seconds = 110.0
    control_expiry: Seconds = 30.0
    dedup_ttl: Seconds = 300.0
    dedup_store: Annotated[Literal["memory", "mysql"], _LOWER] = "memory"
    drain_timeout: Seconds = 10.0

    api_keys: SecretStr = SecretStr("")
    api_keys_file: ReadableSecretFile = None
    api_trusted: Networks = ()
    cors_origins: Origins = ()
    allowed_hosts: HostNames = ()
    device_list: Annotated[Literal["keys", "open", "off"], _LOWER] = "keys"
    public_url: Annotated[str, AfterValidator(_public_url)] = ""
    mcp_device_uuid: Annotated[str, Field(max_length=36)] = ""

    language: Annotated[Language, _LOWER] = "zh"
    log_level: Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR"], _UPPER] = "INFO"
    log_format: Annotated[Literal["text", "json"], _LOWER] = "text"

    @field_validator("mqtt_tls_key")
    @classmethod
    def _key_of_a_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("mqtt_tls_cert", value) is None:
            raise UnusableValue("需要同时设置 MQTT_TLS_CERT", "requires MQTT_TLS_CERT")
        return value

    @cached_property
    def instance(self) -> str:
        """Our name at the broker: the client id and the level of the presence topic."""
        host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()) or "bridge"
        return self.mqtt_instance or f"{host}-{self.service_port}"

    @cached_property
    def timezone(self) -> ZoneInfo:
        """The zone of the database's naive times."""
        return ZoneInfo(self.db_timezone)


def load() -> Settings:
    """Read the settings of `.env` and the environment, which wins.

    Raises SettingsError if a value can't be used; its message is one line without secrets.
    """
    filed, environment = written_names()
    texts = {**filed, **environment}
    # In the environment it is GNU gettext's too, which writes "zh_CN:zh" there.
    if environment.get("LANGUAGE", "").strip().lower() not in LANGUAGES:
        texts["LANGUAGE"] = filed.get("LANGUAGE", "")
    language: Language = "en" if texts["LANGUAGE"].strip().lower() == "en" else "zh"
    values = {}
    for name in Settings.model_fields:
        text = _text_of(name.upper(), texts, language)
        if text or (text is not None and name in MEANINGFUL_WHEN_EMPTY):
            values[name] = text
    try:
        return Settings.model_validate(values)
    except ValidationError as invalid:
        faults = []
        for fault in invalid.errors(include_input=False, include_url=False):
            context = fault.get("ctx", {})
            ours = context.get("error")
            words = (
                ours.text
                if isinstance(ours, UnusableValue)
                else fault_text(fault["type"], **context)
            )
            faults.append(f"{str(fault['loc'][0]).upper()}: {words.in_(language)}")
        raise SettingsError("; ".join(faults)) from None


def reader_language(environment: Mapping[str, str]) -> Language:
    """The language of whoever reads a terminal: LANGUAGE, else the locale, else Chinese."""
    # LANGUAGE may be a list, as for GNU gettext (`zh_CN:en`); C and POSIX name no language.
    for name in ("LANGUAGE", "LC_ALL", "LANG"):
        locale = environment.get(name, "").strip().lower()
        if re.split(r"[._@:-]", locale)[0] in ("", "c", "posix"):
            continue
        return "zh" if locale.startswith("zh") else "en"
    return "zh"


def written_names() -> tuple[dict[str, str], dict[str, str]]:
    """What `.env` and the environment hold, by names in capitals: case does not matter.

    Raises SettingsError if `.env` is no UTF-8 text, or has a line that is no setting.
    """
    try:
        # Windows' editors write a byte order mark.
        text = Path(ENV_FILE).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise SettingsError(f"{ENV_FILE}: {_NOT_TEXT.in_(reader_language(os.environ))}") from None
    except OSError:
        text = ""
    for binding in parse_stream(StringIO(text)):
        if binding.error:
            words = _NO_SETTING.in_(reader_language(os.environ))
            raise SettingsError(f"{ENV_FILE}: {words.format(binding.original.line)}")
    filed = dotenv_values(stream=StringIO(text))
    return (
        {name.upper(): value for name, value in filed.items() if value is not None},
        {name.upper(): value for name, value in os.environ.items()},
    )


def _text_of(name: str, texts: dict[str, str], language: Language) -> str | None:
    """A setting as it was written, without what editors and shells leave around it."""
    text = texts.get(name)
    if name not in SECRET_NAMES:
        text = None if text is None else text.strip()
        quoted = text and len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
        return text[1:-1].strip() if text and quoted else text
    # API_KEYS_FILE is a setting of its own, with limits beside each key.
    path = texts.get(f"{name}_FILE", "").strip()
    if path and not text and name != "API_KEYS":
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise SettingsError(f"{name}_FILE: {UNREADABLE.in_(language)}") from None
    return None if text is None else text.strip("\r\n")
