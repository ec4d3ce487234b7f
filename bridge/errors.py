"""Everything that can go wrong, as one tree.

    BridgeError                       500 internal_error
    ├─ MalformedRequest               400 malformed_request
    ├─ InvalidControl                 400 invalid_control
    │  ├─ UnknownPortType, UnknownAction, ValueMissing
    │  └─ UnknownPort, UnknownPortName, AmbiguousPort, SomeDisabled, UnreadablePorts
    ├─ InvalidPreset                  400 invalid_preset
    │  ├─ AmbiguousPreset, UnknownParameter, PresetTooLong, DisabledPort
    ├─ AmbiguousSensor                400 ambiguous_sensor
    ├─ DeviceOffline                  400 device_offline
    ├─ Unauthorized                   401 unauthorized
    ├─ ReplyTopicForbidden            403 reply_topic_forbidden
    ├─ Forbidden                      403 forbidden
    ├─ DeviceNotFound, SensorNotFound, PresetNotFound, OperationNotFound   404
    ├─ MethodNotAllowed, PayloadTooLarge, UnsupportedMediaType             405, 413, 415
    │  ├─ TooManyProperties (413), UnsupportedPayloadFormat (415)
    ├─ Expired                        408 expired
    ├─ DeviceUnreachable, DeviceBusy, IdempotencyConflict                  409
    ├─ ValidationFailed               422 validation_error
    ├─ Busy                           429 busy
    ├─ DatabaseUnavailable, MqttUnavailable, Draining                      503
    ├─ DatabaseTimeout, RequestTimeout, OutcomeUnknown                     504
    └─ UnsupportedVersion             505 unsupported_version

`core/replies.py` turns an error into a reply. Its sentence says what to do next, and never holds a
driver's words. Errors about devices are in `devices/errors.py`.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

Language = Literal["zh", "en"]


@dataclass(frozen=True, slots=True)
class Text:
    """One sentence in both languages."""

    zh: str
    en: str

    def in_(self, language: Language) -> str:
        return self.en if language == "en" else self.zh


class UnusableValue(ValueError):
    """A setting, a key or an argument that can't be used; no secret is in the words."""

    def __init__(self, zh: str, en: str) -> None:
        super().__init__(en)
        self.text = Text(zh, en)


class UnusableFile(UnusableValue, OSError):
    """A file that a setting names and that holds something else."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """One fault in one field; 422 replies list them as `loc`, `msg`, `type`."""

    loc: tuple[str | int, ...]
    msg: Text
    type: str


_WHOLE_NUMBER = Text("应为整数", "must be a whole number")
_NUMBER = Text("应为数字", "must be a number")
_BOOLEAN = Text("应为 true 或 false", "must be true or false")
_TEXT = Text("应为文本", "must be text")
_FAULTS = {
    "missing": Text("缺少该字段", "is missing"),
    "int_type": _WHOLE_NUMBER,
    "int_parsing": _WHOLE_NUMBER,
    "int_from_float": _WHOLE_NUMBER,
    "int_parsing_size": Text("数字过大", "is too large"),
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
    "finite_number": _NUMBER,
    "bool_type": _BOOLEAN,
    "bool_parsing": _BOOLEAN,
    "string_type": _TEXT,
    "string_unicode": _TEXT,
    "string_too_short": Text(
        "至少 {min_length} 个字符", "must have {min_length} or more characters"
    ),
    "string_too_long": Text(
        "最多 {max_length} 个字符", "must have at most {max_length} characters"
    ),
    "dict_type": Text("应为 JSON 对象", "must be a JSON object"),
    "list_type": Text("应为 JSON 数组", "must be a JSON array"),
    "too_short": Text("至少 {min_length} 项", "must have {min_length} or more items"),
    "too_long": Text("最多 {max_length} 项", "must have at most {max_length} items"),
    "greater_than": Text("应大于 {gt}", "must be greater than {gt}"),
    "greater_than_equal": Text("不能小于 {ge}", "must be {ge} or more"),
    "less_than_equal": Text("不能大于 {le}", "must be {le} or less"),
    "literal_error": Text("应为 {expected_zh} 之一", "must be one of {expected}"),
}


def fault_text(kind: str, **facts: Any) -> Text:
    """What pydantic found wrong with a value, by its type of error, in our own words."""
    if "expected" in facts:
        # pydantic writes 'a', 'b' or 'c'
        choices = re.findall("'(.*?)'", facts["expected"])
        facts |= {"expected": ", ".join(choices), "expected_zh": "、".join(choices)}
    facts = {name: int(fact) if isinstance(fact, float) else fact for name, fact in facts.items()}
    text = _FAULTS.get(kind) or Text("该值无效", "is not valid")
    return Text(text.zh.format_map(facts), text.en.format_map(facts))


def as_property(value: object) -> str | None:
    """A value as `__propVal` tells it: a text as it is, anything else as JSON; None if absent."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


class BridgeError(Exception):
    """The root. `facts` fill the placeholders of the class's `text`."""

    code: ClassVar[int] = 500
    error: ClassVar[str] = "internal_error"
    text: ClassVar[Text] = Text(
        "桥接服务内部错误，已记录；请联系管理员并提供编号 {incident}",
        "The bridge had an internal error and logged it; "
        "report this number to the administrator: {incident}",
    )
    # Whether the operation failed, rather than the request (`__apErr`).
    in_operation: ClassVar[bool] = False
    # The property at fault, if one is (`__propName`, `__propVal`).
    property_name: str | None = None
    property_value: str | None = None

    def __init_subclass__(
        cls, code: int | None = None, error: str | None = None, in_operation: bool | None = None
    ) -> None:
        cls.code = cls.code if code is None else code
        cls.error = cls.error if error is None else error
        cls.in_operation = cls.in_operation if in_operation is None else in_operation

    def __init__(self, **facts: Any) -> None:
        super().__init__(facts)
        self.facts = facts

    def about(self, name: str, value: object = None) -> Self:
        """The same error, with the property at fault and what was sent there (absent if None)."""
        self.property_name = name
        self.property_value = as_property(value)
        return self

    def detail(self, language: Language) -> str:
        """The sentence for a person; without a driver's words or secrets."""
        facts = {
            name: fact.in_(language) if isinstance(fact, Text) else fact
            for name, fact in self.facts.items()
        }
        return self.text.in_(language).format_map(facts)

    def __str__(self) -> str:
        return f"{self.code} {self.error}: {self.detail('en')}"


class MalformedRequest(BridgeError, code=400, error="malformed_request"):
    text = Text("请求格式错误：{reason}", "The request is malformed: {reason}")


class Unauthorized(BridgeError, code=401, error="unauthorized"):
    text = Text(
        "缺少或错误的 API 密钥；请在 X-API-Key 或 Authorization: Bearer 请求头中提供",
        "The API key is missing or wrong; send it as X-API-Key or as Authorization: Bearer",
    )


class ReplyTopicForbidden(BridgeError, code=403, error="reply_topic_forbidden"):
    text = Text(
        "不允许使用该回复主题，请求未执行；请使用 {allowed} 之下的主题",
        "This reply topic is not allowed and the request was not executed; "
        "use a topic under {allowed}",
    )


class Forbidden(BridgeError, code=403, error="forbidden"):
    text = Text("不允许：{reason}", "Not allowed: {reason}")


class OperationNotFound(BridgeError, code=404, error="operation_not_found"):
    text = Text(
        "此处没有这个操作，可用的操作：{operations}",
        "There is no such operation here; the operations are: {operations}",
    )


class MethodNotAllowed(BridgeError, code=405, error="method_not_allowed"):
    text = Text("此路径只支持 {allowed}", "This path accepts only {allowed}")


class PayloadTooLarge(BridgeError, code=413, error="payload_too_large"):
    text = Text(
        "内容过大，最多 {limit} 字节；请拆分请求",
        "The payload is larger than {limit} bytes; split the request",
    )


class TooManyProperties(PayloadTooLarge):
    text = Text(
        "MQTT 用户属性过多，最多 {limit} 个，请求未执行",
        "There are more than {limit} user properties, and the request was not executed",
    )


class UnsupportedMediaType(BridgeError, code=415, error="unsupported_media_type"):
    text = Text(
        "内容类型必须是 application/json（UTF-8）",
        "The content type must be application/json (UTF-8)",
    )


class UnsupportedPayloadFormat(UnsupportedMediaType):
    text = Text(
        "Payload Format Indicator 只能是 0 或 1",
        "The Payload Format Indicator must be 0 or 1",
    )
    property_name = "Payload Format Indicator"


class UnsupportedVersion(BridgeError, code=505, error="unsupported_version"):
    text = Text(
        "不支持协议版本「{version}」，请求未执行；请使用 __protVer 1.0 或不发送该属性",
        "The protocol version '{version}' is not supported and the request was not executed; "
        "send __protVer 1.0, or omit it",
    )


class Expired(BridgeError, code=408, error="expired"):
    text = Text(
        "请求在开始处理前已过期，未执行；请检查时钟后重新发送",
        "The request expired before it was started, and was not executed; "
        "check the clocks and send it again",
    )
    property_name = "expires_at"
    # Azure's invokers read an ISO 8601 duration here: no time was left.
    property_value = "PT0S"


class IdempotencyConflict(BridgeError, code=409, error="idempotency_conflict"):
    text = Text(
        "该编号已用于另一个不同的请求，本次未执行；请换一个新的 request_id",
        "This id was used for a different request, and nothing was executed; use a new id",
    )


class ValidationFailed(BridgeError, code=422, error="validation_error"):
    """A field is missing or of the wrong type or range; `errors` lists every fault."""

    text = Text("字段有误：{fields}", "Invalid fields: {fields}")

    def __init__(self, errors: Sequence[FieldError], value: object = None) -> None:
        super().__init__()
        self.errors = tuple(errors)
        self.about(_name_of(errors[0]), value)

    def detail(self, language: Language) -> str:
        """Every field at fault, with what is wrong there."""
        colon, comma = (" ", "; ") if language == "en" else ("：", "；")
        faults = (f"{_name_of(fault)}{colon}{fault.msg.in_(language)}" for fault in self.errors)
        return self.text.in_(language).format(fields=comma.join(faults))


def _name_of(fault: FieldError) -> str:
    return ".".join(map(str, fault.loc)) or "request"


class Busy(BridgeError, code=429, error="busy"):
    text = Text(
        "桥接服务正忙，请求未执行；请稍后重试",
        "The bridge is busy and did not execute the request; try again shortly",
    )


class DatabaseUnavailable(BridgeError, code=503, error="database_unavailable", in_operation=True):
    text = Text(
        "数据库暂时不可用，请稍后重试",
        "The database is unavailable; try again shortly",
    )


class MqttUnavailable(BridgeError, code=503, error="mqtt_unavailable", in_operation=True):
    text = Text(
        "MQTT 服务器暂时不可用，命令未发送；请稍后重试",
        "The MQTT broker is unavailable and the command was not sent; try again shortly",
    )


class Draining(BridgeError, code=503, error="draining"):
    text = Text(
        "桥接服务正在停止，请求未执行；请稍后重试",
        "The bridge is stopping and did not execute the request; try again shortly",
    )


class DatabaseTimeout(BridgeError, code=504, error="database_timeout", in_operation=True):
    text = Text(
        "数据库没有及时回应，请稍后重试",
        "The database did not answer in time; try again shortly",
    )


class RequestTimeout(BridgeError, code=504, error="timeout", in_operation=True):
    text = Text(
        "请求未能及时完成，命令没有发送；请稍后重试",
        "The request could not be completed in time and nothing was sent; try again shortly",
    )


class OutcomeUnknown(BridgeError, code=504, error="outcome_unknown", in_operation=True):
    text = Text(
        "命令已交给 MQTT 服务器但未得到确认，设备可能已收到；"
        "请先查看设备状态，再决定是否换新编号重发",
        "The broker got the command but did not acknowledge it; the device may have received it. "
        "Check the device before you send the command again under a new id",
    )
