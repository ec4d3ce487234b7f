"""An operation's fields from what was sent."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from ..devices.models import Fields, JsonObject
from ..errors import FieldError, ValidationFailed, fault_text


def validated(fields: type[Fields], raw: JsonObject) -> Fields:
    """The validated fields of one operation; raises ValidationFailed with every field at fault."""
    try:
        return fields.model_validate(raw)
    except ValidationError as invalid:
        faults = [
            FieldError(
                tuple(fault["loc"]),
                fault_text(fault["type"], **fault.get("ctx", {})),
                fault["type"],
            )
            for fault in invalid.errors(include_url=False, include_input=False)
        ]
        raise ValidationFailed(faults, _value_at(raw, faults[0].loc)) from None


def _value_at(value: Any, place: Sequence[str | int]) -> Any:
    """What was sent at a place within the fields; None where there is nothing."""
    for step in place:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value
