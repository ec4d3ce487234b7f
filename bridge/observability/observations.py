"""What happened, as metrics, logs and recent activity are told it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# The operation of a request that names none of ours.
UNKNOWN = "unknown"


class RequestAnswered(NamedTuple):
    """One request answered; `seconds` count from its arrival to its reply being ready."""

    transport: str
    operation: str
    device_uuid: str | None
    code: int
    # "ok", or the reply's error.
    outcome: str
    seconds: float
    who: str = ""
    request_id: str | None = None
    traceparent: str | None = None
    detail: str | None = None


class CommandExecuted(NamedTuple):
    """One command executed, or answered with the outcome of an earlier one."""

    who: str
    device_uuid: str
    operation: str
    fields: Mapping[str, Any]
    code: int
    outcome: str
    request_id: str | None
    traceparent: str | None
    duplicate: bool


class Observers:
    """Tells all observers at once, in their order; what one raises is not caught."""

    def __init__(
        self,
        requests: Sequence[Callable[[RequestAnswered], None]] = (),
        commands: Sequence[Callable[[CommandExecuted], None]] = (),
    ) -> None:
        self._requests = tuple(requests)
        self._commands = tuple(commands)

    def request_answered(self, request: RequestAnswered) -> None:
        for observe in self._requests:
            observe(request)

    def command_executed(self, command: CommandExecuted) -> None:
        for observe in self._commands:
            observe(command)
