"""Values of the platform's columns, of whatever type they have in an installation."""

from datetime import datetime


def text(value: object) -> str | None:
    """A text column's value; of a binary one too, and of one that holds something else."""
    if value is None or isinstance(value, str):
        return value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def flag(value: object) -> bool:
    """Whether a column says yes: a number, or a BIT or text column that holds one."""
    if isinstance(value, bytes):
        return any(value.strip(b"0"))
    return value not in ("0", "") and bool(value)


def time(value: object) -> datetime | None:
    """A time column's value; None where it is no time (0000-00-00, 2026-02-30)."""
    if isinstance(value, str):
        # The driver returns as text what it can't convert.
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    return value if isinstance(value, datetime) and value.tzinfo is None else None
