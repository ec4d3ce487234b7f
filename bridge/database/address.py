"""Where the database is: `DATABASE_URL`, else the single `DB_` settings."""

import os
import re
from typing import NamedTuple, NoReturn, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from ..errors import Text, UnusableValue
from ..settings import Settings, SettingsError

_UNREADABLE = Text(
    "不是有效的 URL：端口应为 1–65535 的整数；用户名和密码中的特殊字符须用百分号编码："
    "@ 为 %40，/ 为 %2F，: 为 %3A，[ 为 %5B，# 为 %23",
    "is not a valid URL; the port must be 1 to 65535, and special characters in "
    "user and password must be percent-encoded: @ is %40, / is %2F, : is %3A, [ is %5B, # is %23",
)
_CHARSET = re.compile(r"[A-Za-z0-9_]{1,32}")
_HOST_SWITCHES = ("ssl_verify_identity", "ssl_check_hostname")
_SWITCHES = ("ssl", "ssl_disabled", "ssl_verify_cert", *_HOST_SWITCHES)
_TLS_PARAMETERS = ("ssl_ca", "ssl_cert", "ssl_key", "ssl_mode", *_SWITCHES)
_SCHEMES = ("mysql", "mysql+pymysql", "mysql+asyncmy")


class DatabaseTls(NamedTuple):
    """The TLS that `DATABASE_URL` asks for; without `ca` that of `DB_TLS_CA`, else the system's."""

    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    verify: bool = True
    verify_host: bool = True


class DatabaseAddress(NamedTuple):
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

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The database of `DATABASE_URL` if that is set, else of the `DB_` settings.

        Raises SettingsError if the URL can't be used; its message holds nothing of the URL.
        """
        if settings.database_url is not None:
            return cls._of_url(settings.database_url.get_secret_value().strip(), settings)
        return cls(
            settings.db_host,
            settings.db_port,
            settings.db_name,
            settings.db_user,
            settings.db_password.get_secret_value(),
        )

    @classmethod
    def _of_url(cls, url: str, settings: Settings) -> Self:
        def refuse(words: Text) -> NoReturn:
            raise SettingsError(f"DATABASE_URL: {words.in_(settings.language)}") from None

        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            # The library's message repeats what it could not parse: the password.
            refuse(_UNREADABLE)
        if parts.scheme not in _SCHEMES:
            schemes = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
            refuse(Text(f"须以下列之一开头：{schemes}", f"must begin with one of {schemes}"))
        name = parts.path.lstrip("/")
        if "@" in name or "/" in name:
            # An unescaped slash in the password: its rest would be shown as the database's name.
            refuse(_UNREADABLE)
        asked = {
            key.strip().lower().replace("-", "_"): value.strip()
            for key, value in parse_qsl(parts.query, keep_blank_values=True)
        }
        unix_socket = asked.pop("unix_socket", "") or None
        if not (host or unix_socket) or not name:
            shape = "mysql://user:password@host:3306/aiot"
            refuse(Text(f"须写明主机和库名：{shape}", f"must name a host and a database: {shape}"))
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        charset = asked.pop("charset", "") or "utf8mb4"
        try:
            tls = _tls_asked(asked, charset)
        except UnusableValue as unusable:
            refuse(unusable.text)
        ignored = tuple(sorted(asked))
        return cls(
            host or "localhost",
            port or 3306,
            unquote(name),
            user,
            password,
            unix_socket,
            charset,
            tls,
            ignored,
        )


def _tls_asked(asked: dict[str, str], charset: str) -> DatabaseTls | None:
    """The TLS that a URL's parameters ask for, which are taken out of `asked`; UnusableValue.

    The names are those of PyMySQL and of MySQL's own clients (`ssl_mode`).
    """
    if not _CHARSET.fullmatch(charset):
        raise UnusableValue(
            "charset 不是字符集的名称，例如 utf8mb4",
            "charset must be the name of a character set, such as utf8mb4",
        )
    found = {name: asked.pop(name) for name in _TLS_PARAMETERS if name in asked}
    if not found:
        return None
    files = {name: found[name] for name in ("ssl_ca", "ssl_cert", "ssl_key") if found.get(name)}
    for name, path in files.items():
        if not os.access(path, os.R_OK):
            raise UnusableValue(f"{name}：无法读取该文件", f"{name}: the file can't be read")
    if "ssl_key" in files and "ssl_cert" not in files:
        raise UnusableValue("ssl_key 必须与 ssl_cert 一起使用", "ssl_key requires ssl_cert")
    switches = {name: _switch(name, value) for name, value in found.items() if name in _SWITCHES}
    mode = found.get("ssl_mode", "").upper()
    if mode not in ("", "DISABLED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"):
        raise UnusableValue(
            "ssl_mode 必须是 DISABLED、REQUIRED、VERIFY_CA 或 VERIFY_IDENTITY",
            "ssl_mode must be DISABLED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY",
        )
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
    raise UnusableValue(f"{name} 必须是 true 或 false", f"{name} must be true or false")
