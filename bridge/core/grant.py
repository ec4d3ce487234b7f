"""What a requester may do: the limits of an API key."""

from dataclasses import dataclass

from ..devices.names import device_key
from ..errors import Forbidden, Text

_OPERATION = Text(
    "此密钥不能执行操作 {operation}；请管理员为它开通",
    "this key is not permitted to use {operation}; ask the administrator to permit it",
)
_DEVICE = Text(
    "此密钥不能访问该设备；请管理员为它开通",
    "this key is not permitted to use this device; ask the administrator to permit it",
)
# Where a request merely holds others, which are checked one by one, or touches no device.
_FREE = frozenset({"batch", "health", "operations"})


@dataclass(frozen=True, slots=True)
class Grant:
    """A key's name and what it may do; None means everything."""

    name: str
    operations: frozenset[str] | None = None
    devices: frozenset[str] | None = None

    def check(self, operation: str, device_uuid: str | None) -> None:
        """Raise Forbidden unless the key permits the operation, and the device if one is named."""
        allowed = self.operations is None or operation in _FREE or operation in self.operations
        if not allowed:
            raise Forbidden(
                reason=Text(
                    _OPERATION.zh.format(operation=operation),
                    _OPERATION.en.format(operation=operation),
                )
            )
        if device_uuid is None or self.devices is None:
            return
        if device_key(device_uuid) not in self.devices:
            raise Forbidden(reason=_DEVICE)
