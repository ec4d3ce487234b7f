"""Where the database is: `DATABASE_URL`, else the single `DB_` settings."""

from typing import NamedTuple, NoReturn, Self
from urllib.parse import unquote, urlsplit

from ..errors import Text
from ..settings import Settings, SettingsError

_UNREADABLE = Text(
    "不是可以读取的 URL：端口是 1–65535 的数字；用户名和密码中的特殊字符须用百分号编码："
    "@ 为 %40，/ 为 %2F，: 为 %3A，[ 为 %5B，# 为 %23",
    "is no URL that can be read; its port is a number from 1 to 65535, and special characters of "
    "user and password are percent-encoded: @ is %40, / is %2F, : is %3A, [ is %5B, # is %23",
)
_SCHEMES = ("mysql", "mysql+pymysql", "mysql+asyncmy")


class DatabaseAddress(NamedTuple):
    """Where the database is and who we are there."""

    host: str
    port: int
    name: str
    user: str
    password: str

    def __str__(self) -> str:
        return f"mysql://{self.user}:***@{self.host}:{self.port}/{self.name}"

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The database of `DATABASE_URL` if that is set, else of the `DB_` settings.

        Raises:
            SettingsError: the URL can't be used; the message holds nothing of it.
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
            # The library's own words repeat what it could not read: the password.
            refuse(_UNREADABLE)
        if parts.scheme not in _SCHEMES:
            schemes = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
            refuse(Text(f"须以此开头：{schemes}", f"must begin with one of {schemes}"))
        name = parts.path.lstrip("/")
        if "@" in name or "/" in name:
            # What follows a slash in the password would be told as the database's name.
            refuse(_UNREADABLE)
        if not host or not name:
            shape = "mysql://user:password@host:3306/aiot"
            refuse(Text(f"须写明主机和库名：{shape}", f"must name a host and a database: {shape}"))
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        return cls(host, port or 3306, unquote(name), user, password)
