"""A reply's data as what the operation promises."""

from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from .errors import CallError

T = TypeVar("T")
# Pydantic builds a validator with each: one a type, and none before it is needed.
_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def typed(kind: type[T], data: object) -> T:
    """The data as one of `kind`.

    Raises:
        CallError: it is none.
    """
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError:
        raise CallError(
            f"the bridge's reply is no {kind.__name__}; are client and bridge of one version?"
        ) from None


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    adapter = _adapters.get(kind)
    if adapter is None:
        adapter = _adapters[kind] = TypeAdapter(kind)
    return adapter
