"""A reply's data as what the operation promises."""

from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from .errors import CallError

T = TypeVar("T")


def typed(kind: type[T], data: object) -> T:
    """The data as one of `kind`; raises CallError if it is none."""
    try:
        answer: T = _adapter(kind).validate_python(data)  # type: ignore[arg-type]
    except ValidationError:
        raise CallError(
            f"the bridge's reply is no {kind.__name__}; are client and bridge of one version?"
        ) from None
    return answer


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
