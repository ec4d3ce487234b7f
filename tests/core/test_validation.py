"""Faults in fields, told in our own words and in the reader's language."""

from __future__ import annotations

import re

import pytest

from bridge.core.validation import validated
from bridge.devices.models import BatchFields, ControlFields, PresetFields, SensorDataFields
from bridge.errors import ValidationFailed

CONTROL = {"device_uuid": "d", "action": "on"}
FAULTY = [
    (SensorDataFields, {}, "缺少该字段", "is missing"),
    (SensorDataFields, {"device_uuid": 1, "sensor": "t"}, "应为文本", "must be text"),
    (
        SensorDataFields,
        {"device_uuid": "d" * 37, "sensor": "t"},
        "最多 36 个字符",
        "must have at most 36 characters",
    ),
    (ControlFields, {**CONTROL, "port_id": "one"}, "应为整数", "must be a whole number"),
    (ControlFields, {**CONTROL, "port_id": True}, "应为整数", "must be a whole number"),
    (ControlFields, {**CONTROL, "port_id": 2**60}, "数字过大", "is too large"),
    (
        ControlFields,
        {**CONTROL, "frequency": 10**9},
        "不能大于 40000000",
        "must be 40000000 or less",
    ),
    (
        PresetFields,
        {"device_uuid": "d", "preset_key": "p", "parameters": 1},
        "应为 JSON 对象",
        "must be a JSON object",
    ),
    (BatchFields, {"requests": 1}, "应为 JSON 数组", "must be a JSON array"),
    (BatchFields, {"requests": []}, "至少 1 项", "must have 1 or more items"),
]


@pytest.mark.parametrize(("fields", "raw", "chinese", "english"), FAULTY)
def test_fault_is_told_in_our_words(fields, raw, chinese, english):
    with pytest.raises(ValidationFailed) as refusal:
        validated(fields, raw)
    error = refusal.value
    assert error.errors[0].msg.zh == chinese
    assert error.errors[0].msg.en == english
    assert english in error.detail("en")
    assert not re.search("[A-Z][a-z]+ should|[Ff]ield required", error.detail("zh"))
