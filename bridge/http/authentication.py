"""API keys: who may ask over HTTP, and what each key may do."""

import contextlib
import hmac
import logging
import re
import stat
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from ..core.grant import Grant
from ..devices.names import device_key
from ..errors import Unauthorized, UnusableValue
from ..settings import UNREADABLE, Networks, Settings, SettingsError

logger = logging.getLogger(__name__)

_READABLE_BY_OTHERS = stat.S_IROTH
_KEY_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


class WrongKey(Unauthorized):
    """A key was shown, and it is none of ours."""


class Keys:
    """The keys of `API_KEYS` and `API_KEYS_FILE`, and the addresses that need none."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._trusted: Networks = settings.api_trusted
        self._by_digest: dict[bytes, Grant] = {}
        self.load()

    @property
    def required(self) -> bool:
        """Whether there are any keys."""
        return bool(self._by_digest)

    def load(self) -> None:
        """Read the keys again.

        Raises SettingsError if the file can't be used; the keys that were known stay in force.
        """
        self._by_digest = read_keys(self._settings)
        path = self._settings.api_keys_file
        # The file may have been removed meanwhile.
        with contextlib.suppress(OSError):
            if path is not None and path.stat().st_mode & _READABLE_BY_OTHERS:
                logger.warning(
                    "API_KEYS_FILE: every user of this machine may read %s; make it chmod 640", path
                )

    def admit(self, secret: str | None, address: str | None) -> Grant | None:
        """What the bearer of a secret, or the caller from an address, may do; None: everything.

        A trusted address needs no key, so that a wrong one does not shut it out; the limits of a
        key that it shows do hold.

        Raises:
            Unauthorized: there are keys, and none was shown.
            WrongKey: what was shown is none of them.
        """
        if not self._by_digest:
            return None
        if secret is not None:
            offered = _digest(secret)
            # Every key is compared, in constant time, so that timing tells nothing of any.
            matches = [
                grant
                for known, grant in self._by_digest.items()
                if hmac.compare_digest(known, offered)
            ]
            if matches:
                return matches[0]
        if address is not None and self._is_trusted(address):
            return None
        raise Unauthorized() if secret is None else WrongKey()

    def _is_trusted(self, address: str) -> bool:
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:
            return False
        if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        return any(parsed in network for network in self._trusted)


def _digest(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogateescape")).digest()


def read_keys(settings: Settings) -> dict[bytes, Grant]:
    """What each key may do, by its secret's digest; a line of the file limits a key of `API_KEYS`.

    Raises:
        SettingsError: one can't be used, or the file holds none: editors empty a file before they
            write it, and without it there would be no limits, or no guard at all.
    """
    try:
        keys = _parse_keys(settings.api_keys.get_secret_value())
    except UnusableValue as error:
        raise SettingsError(f"API_KEYS: {error.text.in_(settings.language)}") from None
    grants = {_digest(secret): Grant(name) for name, secret in keys.items()}
    if settings.api_keys_file is None:
        return grants
    try:
        grants |= _read_file(settings.api_keys_file)
        names = [grant.name for grant in grants.values()]
        for name in names:
            if names.count(name) > 1:
                raise UnusableValue(
                    f"{name!r} 在 API_KEYS 中另有密钥", f"{name!r} has another secret in API_KEYS"
                )
    except UnusableValue as error:
        raise SettingsError(f"API_KEYS_FILE: {error.text.in_(settings.language)}") from None
    return grants


def _parse_keys(text: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for number, entry in enumerate((part.strip() for part in text.split(",")), start=1):
        if not entry:
            continue
        name, colon, secret = entry.partition(":")
        if not (colon and secret and _KEY_NAME.fullmatch(name)):
            raise UnusableValue(
                f"第 {number} 项不是 名称:密钥", f"entry {number} is not name:secret"
            )
        if name in keys:
            raise UnusableValue(f"名称 {name!r} 重复", f"the name {name!r} is used twice")
        keys[name] = secret
    if text.strip() and not keys:
        raise UnusableValue("其中没有密钥", "there is no key in it")
    return keys


def _read_file(path: Path) -> dict[bytes, Grant]:
    grants: dict[bytes, Grant] = {}
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        digest, grant = _read_line(words, number)
        if digest in grants or any(grant.name == other.name for other in grants.values()):
            raise UnusableValue(
                f"第 {number} 行：名称或密钥与上面某行相同",
                f"line {number}: the name or the secret is already in a line above",
            )
        grants[digest] = grant
    if not grants:
        raise UnusableValue(
            "文件中没有密钥；若不需要密钥，请删去该配置项",
            "the file holds no key; to use no keys, remove the setting",
        )
    return grants


def _text_of(path: Path) -> str:
    if not path.is_file():
        # Reading a pipe would block.
        raise UnusableValue("该路径不是普通文件", "this is not a regular file")
    try:
        # Windows' editors write a byte order mark.
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise UnusableValue(UNREADABLE.zh, UNREADABLE.en) from None


def _read_line(words: list[str], number: int) -> tuple[bytes, Grant]:
    try:
        ((name, secret),) = _parse_keys(words[0]).items()
    except ValueError:
        raise UnusableValue(
            f"第 {number} 行不是以 名称:密钥 开头", f"line {number} does not begin with name:secret"
        ) from None
    limits: dict[str, frozenset[str]] = {}
    for word in words[1:]:
        kind, _, values = word.partition("=")
        names = frozenset(value for value in values.split(",") if value)
        if kind == "devices":
            names = frozenset(map(device_key, names))
        # Without the word itself, which may be part of a secret with a space in it.
        if kind not in ("operations", "devices") or not names or kind in limits:
            raise UnusableValue(
                f"第 {number} 行：名称:密钥 之后只能有 operations=… 和 devices=…，各一次",
                f"line {number}: after name:secret write operations=… or devices=…, once each",
            )
        limits[kind] = names
    return _digest(secret), Grant(name, limits.get("operations"), limits.get("devices"))
