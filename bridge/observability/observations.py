"""What happened, as metrics, logs and recent activity are told it."""

from typing import NamedTuple


class Observation(NamedTuple):
    """One request answered, for logs, metrics and the console."""

    operation: str
    transport: str
    device_uuid: str | None
    code: int
    outcome: str
    seconds: float
