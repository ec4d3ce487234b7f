"""Settings: read once from the environment and `.env`, validated, secrets hidden.

The environment wins over `.env`. A secret may also come as `NAME_FILE`, the path of a file that
holds it. An empty value means the default, except where emptiness says something (an empty
`MQTT_SHARE` is a plain subscription). Names that are not ours are ignored.
"""

import ipaddress
import os
import re
import socket
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dotenv import dotenv_values
from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from .errors import Language

ENV_FILE = ".env"
SECRET_NAMES = ("DB_PASSWORD", "DATABASE_URL", "MQTT_PASSWORD", "API_KEYS")
# Emptiness is a value of its own in these.
MEANINGFUL_WHEN_EMPTY = frozenset(
    {
        "mqtt_share",
        "mqtt_username",
        "mqtt_password",
        "db_password",
        "api_keys",
        "cors_origins",
    }
)

Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]
CommaSeparated = Annotated[tuple[str, ...], NoDecode]
Networks = Annotated[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...], NoDecode]

# Of a file that holds a secret. Its path is not repeated: some give the secret itself there.
UNREADABLE = "the file that it names can't be read as text"
_UNREADABLE_URL = (
    "is no URL that can be read; its port is a number from 1 to 65535, and special characters of "
    "user and password are percent-encoded: @ is %40, / is %2F, : is %3A, [ is %5B, # is %23"
)
_CHARSET = re.compile(r"[A-Za-z0-9_]{1,32}")
_HOST_SWITCHES = ("ssl_verify_identity", "ssl_check_hostname")
_SWITCHES = ("ssl", "ssl_disabled", "ssl_verify_cert", *_HOST_SWITCHES)
_TLS_PARAMETERS = ("ssl_ca", "ssl_cert", "ssl_key", "ssl_mode", *_SWITCHES)
# What stands before an IPv4 address in IPv6 (::ffff:10.0.0.1).
_MAPPED_BITS = 96
_TOPIC_LEVEL = re.compile(r"[^\x00-\x1f\x7f/+#$ ]+")
_KEY_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LOCALE_LIST = re.compile(r"[A-Za-z]{2,3}([_.@-][\w.@-]*)?(:.*)?|C(\..*)?|POSIX")


class SettingsError(Exception):
    """Settings that can't be used; the message is one line that names the variables."""


class DatabaseTls(NamedTuple):
    """The TLS that `DATABASE_URL` asks for; without `ca` that of `DB_TLS_CA`, else the system's."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    verify: bool = True
    verify_host: bool = True


class DatabaseAddress(NamedTuple):
    """Where the database is and who we are there."""

    host: str
    port: int
    name: str
    user: str
    password: str
    unix_socket: str | None = None
    charset: str = "utf8mb4"
    tls: DatabaseTls | None = None
    # Parameters of `DATABASE_URL` that are not understood, by name.
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        place = self.unix_socket or f"{self.host}:{self.port}"
        return f"mysql://{self.user}:***@{place}/{self.name}"


class Settings(BaseSettings):
    """Every setting of the bridge; the field's name in capitals is the variable's."""

    model_config = SettingsConfigDict(
        env_file=ENV_FILE, env_file_encoding="utf-8", extra="ignore", frozen=True
    )

    db_host: str = "localhost"
    db_port: Port = 3306
    db_name: str = "aiot"
    db_user: str = "aiot_user"
    db_password: SecretStr = SecretStr("")
    database_url: SecretStr | None = None
    db_pool_size: Annotated[int, Field(ge=1, le=100)] = 5
    db_timeout: Seconds = 3.0
    db_timezone: str = "Asia/Shanghai"
    db_tls_ca: Path | None = None

    mqtt_broker: str = "localhost"
    mqtt_port: Port = 1883
    mqtt_username: str = ""
    mqtt_password: SecretStr = SecretStr("")
    mqtt_tls: bool = False
    mqtt_tls_ca: Path | None = None
    mqtt_tls_cert: Path | None = None
    mqtt_tls_key: Path | None = None
    mqtt_protocol: Literal["5", "3.1.1"] = "5"
    mqtt_topic_prefix: str = "plugin"
    mqtt_share: str = "bridge"
    mqtt_instance: str = ""
    mqtt_session_expiry: Annotated[int, Field(ge=0, le=0xFFFFFFFE)] = 30
    mqtt_reply_topics: CommaSeparated = ()

    service_host: str = "0.0.0.0"  # noqa: S104  documented: plugin-service may live elsewhere
    service_port: Port = 9001
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    max_in_flight: Annotated[int, Field(ge=1, le=60000)] = 256
    max_payload: Annotated[int, Field(ge=256, le=16 * 1024 * 1024)] = 64 * 1024
    request_timeout: Seconds = 8.0
    preset_timeout: Seconds = 110.0
    control_expiry: Seconds = 30.0
    dedup_ttl: Seconds = 300.0
    dedup_store: Literal["memory", "mysql"] = "memory"
    drain_timeout: Seconds = 10.0

    api_keys: SecretStr = SecretStr("")
    api_keys_file: Path | None = None
    api_trusted: Networks = ()
    cors_origins: CommaSeparated = ("*",)
    mcp_device_uuid: Annotated[str, Field(max_length=36)] = ""

    language: Language = "zh"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"

    @model_validator(mode="before")
    @classmethod
    def _empty_means_default(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value
            for name, value in values.items()
            if name in MEANINGFUL_WHEN_EMPTY or not (isinstance(value, str) and not value.strip())
        }

    @field_validator("mqtt_reply_topics", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("api_trusted", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(_network(part.strip()) for part in value.split(",") if part.strip())
        return value

    @field_validator("mqtt_broker", "db_host")
    @classmethod
    def _host_alone(cls, value: str) -> str:
        # Both are told in the log, and where somebody gave a URL its password would be too.
        if "/" in value or "@" in value:
            raise ValueError("must be a host's name or address, and nothing else")
        return value

    @field_validator("mqtt_topic_prefix", "mqtt_instance")
    @classmethod
    def _one_topic_level(cls, value: str) -> str:
        if value and not all(_TOPIC_LEVEL.fullmatch(level) for level in value.split("/")):
            raise ValueError("must be usable in an MQTT topic (no +, #, $, space or empty level)")
        return value

    @field_validator("mqtt_share")
    @classmethod
    def _share_name(cls, value: str) -> str:
        if value and not _TOPIC_LEVEL.fullmatch(value):
            raise ValueError("must be one MQTT topic level (no /, +, #, $ or space)")
        return value

    @field_validator("mqtt_reply_topics")
    @classmethod
    def _topic_filters(cls, filters: tuple[str, ...]) -> tuple[str, ...]:
        for topic_filter in filters:
            *parents, last = topic_filter.split("/")
            misplaced = any("#" in level for level in parents) or ("#" in last and last != "#")
            partial = any("+" in level and level != "+" for level in (*parents, last))
            if misplaced or partial:
                raise ValueError(f"{topic_filter!r} is no MQTT topic filter")
        return filters

    @field_validator("db_timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{value!r} is no time zone; use a name like Asia/Shanghai") from None
        return value

    @field_validator("language", mode="before")
    @classmethod
    def _language_of_locale(cls, value: object) -> object:
        # LANGUAGE is also a variable of GNU gettext ("zh_CN:zh"), which desktops and shells set:
        # the first language in it that we speak counts, else the default.
        if not isinstance(value, str) or not _LOCALE_LIST.fullmatch(value.strip()):
            return value
        spoken = (part.strip().lower()[:2] for part in value.split(":"))
        return next((language for language in spoken if language in ("zh", "en")), "zh")

    @field_validator("log_level", mode="before")
    @classmethod
    def _upper(cls, value: object) -> object:
        return value.strip().upper() if isinstance(value, str) else value

    @field_validator("dedup_store", "log_format", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("db_tls_ca", "mqtt_tls_ca", "mqtt_tls_cert", "mqtt_tls_key")
    @classmethod
    def _readable(cls, value: Path | None) -> Path | None:
        if value is not None and not os.access(value, os.R_OK):
            raise ValueError(f"the file {str(value)!r} can't be read")
        return value

    @field_validator("api_keys_file")
    @classmethod
    def _readable_secret(cls, value: Path | None) -> Path | None:
        if value is not None and not os.access(value, os.R_OK):
            raise ValueError(UNREADABLE)
        return value

    @field_validator("mqtt_tls_key")
    @classmethod
    def _key_of_a_certificate(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("mqtt_tls_cert", value) is None:
            raise ValueError("is of no use without MQTT_TLS_CERT")
        return value

    @field_validator("api_keys")
    @classmethod
    def _named_keys(cls, value: SecretStr) -> SecretStr:
        parse_api_keys(value.get_secret_value())
        return value

    @field_validator("database_url")
    @classmethod
    def _usable_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            _parse_database_url(value.get_secret_value())
        return value

    @cached_property
    def database(self) -> DatabaseAddress:
        """`DATABASE_URL` when it is given, else the single `DB_` settings."""
        if self.database_url is not None:
            return _parse_database_url(self.database_url.get_secret_value())
        return DatabaseAddress(
            self.db_host,
            self.db_port,
            self.db_name,
            self.db_user,
            self.db_password.get_secret_value(),
        )

    @cached_property
    def instance(self) -> str:
        """Our name at the broker: the client id and the level of the presence topic."""
        if self.mqtt_instance:
            return self.mqtt_instance
        host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname()) or "bridge"
        return f"{host}-{self.service_port}"

    @cached_property
    def timezone(self) -> ZoneInfo:
        """The zone of the database's naive times."""
        return ZoneInfo(self.db_timezone)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, environment, `.env`, then the files that `NAME_FILE` names."""
        del file_secret_settings
        return init_settings, env_settings, dotenv_settings, _SecretFiles(settings_cls)


class _SecretFiles(PydanticBaseSettingsSource):
    """Secrets from the files named by `NAME_FILE`, in the environment or in `.env`."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        del field
        path = self._paths.get(f"{field_name.upper()}_FILE")
        if not path:
            return None, field_name, False
        try:
            return Path(path).read_text(encoding="utf-8").strip("\r\n"), field_name, False
        except (OSError, ValueError):
            raise SettingsError(f"{field_name.upper()}_FILE: {UNREADABLE}") from None

    def __call__(self) -> dict[str, Any]:
        found = {}
        # API_KEYS_FILE is a setting of its own, with limits beside each key.
        for name in (name.lower() for name in SECRET_NAMES if name != "API_KEYS"):
            value, _, _ = self.get_field_value(self.settings_cls.model_fields[name], name)
            if value is not None:
                found[name] = value
        return found

    @cached_property
    def _paths(self) -> dict[str, str | None]:
        return {**dotenv_values(ENV_FILE, encoding="utf-8"), **os.environ}


def load() -> Settings:
    """Read the settings.

    Raises:
        SettingsError: a value can't be used; its message is one line without secrets.
    """
    try:
        return Settings()
    except ValidationError as invalid:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'][:1]).upper()}: {_plain(fault['msg'])}"
            for fault in invalid.errors(include_input=False, include_url=False)
        )
        raise SettingsError(faults) from None
    except UnicodeDecodeError:
        raise SettingsError(f"{ENV_FILE}: it is not UTF-8 text") from None


def parse_api_keys(text: str) -> dict[str, str]:
    """`name:secret,…` as a mapping of name to secret.

    Raises:
        ValueError: an entry is no `name:secret`, or a name comes twice; no secret is in the words.
    """
    keys: dict[str, str] = {}
    for number, entry in enumerate((part.strip() for part in text.split(",")), start=1):
        if not entry:
            continue
        name, colon, secret = entry.partition(":")
        if not (colon and secret and _KEY_NAME.fullmatch(name)):
            raise ValueError(f"entry {number} is not name:secret")
        if name in keys:
            raise ValueError(f"the name {name!r} comes twice")
        keys[name] = secret
    return keys


def _parse_database_url(url: str) -> DatabaseAddress:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        # The library's own words repeat what it could not read: the password.
        raise ValueError(_UNREADABLE_URL) from None
    if parts.scheme not in ("mysql", "mysql+pymysql", "mysql+asyncmy"):
        raise ValueError("must begin with mysql://, mysql+pymysql:// or mysql+asyncmy://")
    name = parts.path.lstrip("/")
    if "@" in name or "/" in name:
        # What follows a slash in the password would be told as the database's name.
        raise ValueError(_UNREADABLE_URL)
    asked = {
        key.strip().lower().replace("-", "_"): value.strip()
        for key, value in parse_qsl(parts.query, keep_blank_values=True)
    }
    unix_socket = asked.pop("unix_socket", "") or None
    if not (host or unix_socket) or not name:
        raise ValueError("must name a host and a database: mysql://user:password@host:3306/aiot")
    charset = asked.pop("charset", "") or "utf8mb4"
    if not _CHARSET.fullmatch(charset):
        raise ValueError("charset is no name of a character set, such as utf8mb4")
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    address = DatabaseAddress(host or "localhost", port or 3306, unquote(name), user, password)
    tls = _tls_asked(asked)
    return address._replace(
        unix_socket=unix_socket, charset=charset, tls=tls, ignored=tuple(sorted(asked))
    )


def _tls_asked(asked: dict[str, str]) -> DatabaseTls | None:
    """The TLS that parameters of a URL ask for; those that do are taken out of `asked`.

    The names are those of PyMySQL and of MySQL's own clients (`ssl_mode`).

    Raises:
        ValueError: a value can't be used.
    """
    found = {name: asked.pop(name) for name in _TLS_PARAMETERS if name in asked}
    if not found:
        return None
    files = {name: found[name] for name in ("ssl_ca", "ssl_cert", "ssl_key") if found.get(name)}
    for name, path in files.items():
        if not os.access(path, os.R_OK):
            raise ValueError(f"{name}: the file can't be read")
    if "ssl_key" in files and "ssl_cert" not in files:
        raise ValueError("ssl_key is of no use without ssl_cert")
    switches = {name: _switch(name, value) for name, value in found.items() if name in _SWITCHES}
    mode = found.get("ssl_mode", "").upper()
    if mode not in ("", "DISABLED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"):
        raise ValueError("ssl_mode must be DISABLED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY")
    off = mode == "DISABLED" or switches.get("ssl") is False or switches.get("ssl_disabled", False)
    if off:
        return None
    verify_host = all(switches.get(name, True) for name in _HOST_SWITCHES)
    return DatabaseTls(
        files.get("ssl_ca"),
        files.get("ssl_cert"),
        files.get("ssl_key"),
        # As MySQL's clients read it: REQUIRED encrypts, and verifies where there is a CA.
        verify=switches.get("ssl_verify_cert", mode != "REQUIRED" or "ssl_ca" in files),
        verify_host=verify_host and mode not in ("VERIFY_CA", "REQUIRED"),
    )


def _switch(name: str, value: str) -> bool:
    match value.lower():
        case "true" | "1" | "yes" | "on":
            return True
        case "false" | "0" | "no" | "off":
            return False
    raise ValueError(f"{name} must be true or false")


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """A network, or a single address; bits beyond the mask don't matter."""
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither an IP address nor a network like 10.0.0.0/8"
        ) from None
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is not None and network.prefixlen >= _MAPPED_BITS:
        return ipaddress.ip_network(f"{mapped}/{network.prefixlen - _MAPPED_BITS}")
    return network


def _plain(message: str) -> str:
    return message.removeprefix("Value error, ")
