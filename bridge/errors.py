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

An error is raised anywhere and becomes a reply in one place (`replies.py`). Its sentence is for a
person or a model and says what to do next, in Chinese or English; a driver's words never enter it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

Language = Literal["zh", "en"]


@dataclass(frozen=True, slots=True)
class Text:
    """One sentence in the two languages that we speak."""

    zh: str
    en: str

    def in_(self, language: Language) -> str:
        return self.en if language == "en" else self.zh


@dataclass(frozen=True, slots=True)
class FieldError:
    """One fault in one field, in the shape that 422 replies list (`loc`, `msg`, `type`)."""

    loc: tuple[str | int, ...]
    msg: str
    type: str


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
        "The bridge met an internal error and logged it; "
        "tell the administrator this number: {incident}",
    )
    # Whether the operation failed, rather than the request (`__apErr`).
    in_operation: ClassVar[bool] = False
    # The property at fault, if one is (`__propName`, `__propVal`).
    property_name: str | None = None
    property_value: str | None = None

    def __init__(self, **facts: Any) -> None:
        super().__init__(facts)
        self.facts = facts

    def about(self, name: str, value: object = None) -> Self:
        """The same error, with the property at fault and what was sent there (absent if None)."""
        self.property_name = name
        self.property_value = as_property(value)
        return self

    def detail(self, language: Language) -> str:
        """The sentence for a person, in `language`."""
        facts = {
            name: fact.in_(language) if isinstance(fact, Text) else fact
            for name, fact in self.facts.items()
        }
        return self.text.in_(language).format_map(facts)

    def __str__(self) -> str:
        return f"{self.code} {self.error}: {self.detail('en')}"


class MalformedRequest(BridgeError):
    code = 400
    error = "malformed_request"
    text = Text("请求格式错误：{reason}", "The request is malformed: {reason}")


class InvalidControl(BridgeError):
    code = 400
    error = "invalid_control"
    in_operation = True


class UnknownPortType(InvalidControl):
    text = Text(
        "未知的端口类型「{port_type}」，可用：led、relay、servo、pwm",
        "Unknown port type '{port_type}'; use led, relay, servo or pwm",
    )
    property_name = "port_type"


class UnknownAction(InvalidControl):
    text = Text(
        "端口类型 {port_type} 不支持动作「{action}」，可用：{actions}",
        "A {port_type} has no action '{action}'; use {actions}",
    )
    property_name = "action"


class ValueMissing(InvalidControl):
    text = Text(
        "{port_type} 的 set 动作需要 value（0–{maximum}）",
        "A {port_type} needs a value with set (0-{maximum})",
    )
    property_name = "value"


class UnknownPort(InvalidControl):
    text = Text(
        "设备没有端口「{port}」，现有端口：{ports}",
        "The device has no port '{port}'; its ports are: {ports}",
    )
    property_name = "port_id"


class UnknownPortName(UnknownPort):
    property_name = "port"


class AmbiguousPort(InvalidControl):
    text = Text(
        "端口名「{port}」对应多个端口，请用 port_type 和 port_id 指明其一：{ports}",
        "Several ports are called '{port}'; name one by port_type and port_id: {ports}",
    )
    property_name = "port"


class SomeDisabled(InvalidControl):
    text = Text(
        "有 {port_type} 端口已停用，不能一次控制全部（port_id 0）；请逐个控制：{ports}",
        "Some {port_type} port is disabled, so all can't be switched at once (port_id 0); "
        "switch them one by one: {ports}",
    )
    property_name = "port_id"


class UnreadablePorts(InvalidControl):
    text = Text(
        "设备的端口配置（control_ports 或 device_control_config）无法读取，不能控制；"
        "请在平台上重新保存端口配置",
        "The device's port configuration (control_ports or device_control_config) can't be read, "
        "so nothing can be controlled; save the configuration anew on the platform",
    )
    property_name = "device_uuid"


class UncontrollableDevice(InvalidControl):
    text = Text(
        "设备的 UUID 含有 MQTT 主题不允许的字符，无法控制；请在平台上重新登记该设备",
        "The device's UUID has characters that no MQTT topic may hold, so it can't be controlled; "
        "register the device anew on the platform",
    )
    property_name = "device_uuid"


class InvalidPreset(BridgeError):
    code = 400
    error = "invalid_preset"
    in_operation = True
    text = Text(
        "预设「{preset}」无法执行：{reason}；请在平台上修改后重试",
        "The preset '{preset}' can't be run: {reason}; correct it on the platform and try again",
    )
    property_name = "preset_key"


class AmbiguousPreset(InvalidPreset):
    text = Text(
        "有多个预设名为「{preset}」，请改用 preset_key：{presets}",
        "Several presets are called '{preset}'; use one of these preset keys: {presets}",
    )


class UnknownParameter(InvalidPreset):
    text = Text(
        "预设「{preset}」没有参数「{parameter}」，现有参数：{parameters}",
        "The preset '{preset}' has no parameter '{parameter}'; it has: {parameters}",
    )
    property_name = "parameters"


class DisabledPort(InvalidPreset):
    text = Text(
        "预设「{preset}」会控制已停用的端口 {port}，整个预设未执行；请启用该端口或修改预设",
        "The preset '{preset}' would command the disabled port {port} and nothing of it was run; "
        "enable the port or change the preset",
    )


class PresetTooLong(InvalidPreset):
    text = Text(
        "预设「{preset}」需要 {seconds:g} 秒，超过允许的 {limit:g} 秒；请缩短步骤间隔",
        "The preset '{preset}' takes {seconds:g} s and at most {limit:g} s are allowed; "
        "shorten the delays between its steps",
    )


class DeviceOffline(BridgeError):
    code = 400
    error = "device_offline"
    in_operation = True
    text = Text(
        "设备「{device}」离线，预设未执行；请检查设备电源和网络后重试",
        "The device '{device}' is offline and the preset was not run; "
        "check its power and network, then try again",
    )


class Unauthorized(BridgeError):
    code = 401
    error = "unauthorized"
    text = Text(
        "缺少或错误的 API 密钥；请在 X-API-Key 或 Authorization: Bearer 请求头中提供",
        "The API key is missing or wrong; send it as X-API-Key or as Authorization: Bearer",
    )


class ReplyTopicForbidden(BridgeError):
    code = 403
    error = "reply_topic_forbidden"
    text = Text(
        "不允许使用该回复主题，请求未执行；请使用 {allowed} 之下的主题",
        "That reply topic is not allowed and the request was not executed; use one below {allowed}",
    )


class Forbidden(BridgeError):
    code = 403
    error = "forbidden"
    text = Text("不允许：{reason}", "Not allowed: {reason}")


class DeviceNotFound(BridgeError):
    code = 404
    error = "device_not_found"
    in_operation = True
    text = Text(
        "设备不存在，请核对 device_uuid",
        "There is no such device; check device_uuid",
    )
    property_name = "device_uuid"


class SensorNotFound(BridgeError):
    code = 404
    error = "sensor_not_found"
    in_operation = True
    text = Text(
        "设备没有传感器「{sensor}」的数据，现有传感器：{sensors}",
        "The device has no data of a sensor '{sensor}'; its sensors are: {sensors}",
    )
    property_name = "sensor"


class AmbiguousSensor(BridgeError):
    code = 400
    error = "ambiguous_sensor"
    in_operation = True
    text = Text(
        "有多个传感器名为「{sensor}」，请改用 sensor_name：{sensors}",
        "Several sensors are called '{sensor}'; use one of these sensor names: {sensors}",
    )
    property_name = "sensor"


class PresetNotFound(BridgeError):
    code = 404
    error = "preset_not_found"
    in_operation = True
    text = Text(
        "设备没有预设「{preset}」，现有预设：{presets}",
        "The device has no preset '{preset}'; its presets are: {presets}",
    )
    property_name = "preset_key"


class OperationNotFound(BridgeError):
    code = 404
    error = "operation_not_found"
    text = Text(
        "没有这个操作，可用的操作：{operations}",
        "There is no such operation; the operations are: {operations}",
    )


class MethodNotAllowed(BridgeError):
    code = 405
    error = "method_not_allowed"
    text = Text("此地址只支持 {allowed}", "This address takes {allowed} only")


class PayloadTooLarge(BridgeError):
    code = 413
    error = "payload_too_large"
    text = Text(
        "内容过大，最多 {limit} 字节；请拆分请求",
        "Too large, at most {limit} bytes are taken; split the request",
    )


class TooManyProperties(PayloadTooLarge):
    text = Text(
        "MQTT 用户属性过多，最多 {limit} 个，请求未执行",
        "Too many user properties, at most {limit} are read; the request was not executed",
    )


class UnsupportedMediaType(BridgeError):
    code = 415
    error = "unsupported_media_type"
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


class UnsupportedVersion(BridgeError):
    code = 505
    error = "unsupported_version"
    text = Text(
        "不支持协议版本「{version}」，请求未执行；请使用 __protVer 1.0 或不发送该属性",
        "The protocol version '{version}' is not supported and the request was not executed; "
        "send __protVer 1.0, or none",
    )


class Expired(BridgeError):
    code = 408
    error = "expired"
    text = Text(
        "请求在开始处理前已过期，未执行；请检查时钟后重新发送",
        "The request had expired before work began and was not executed; "
        "check the clocks and send it anew",
    )
    property_name = "expires_at"
    # Azure's invokers read a duration here (ISO 8601), and nothing else: no time was left.
    property_value = "PT0S"


class DeviceUnreachable(BridgeError):
    code = 409
    error = "device_unreachable"
    in_operation = True
    text = Text(
        "设备「{device}」没有连接到 MQTT，命令没有送达；请检查设备电源和网络后重试",
        "The device '{device}' is not connected and the command reached no one; "
        "check its power and network, then try again",
    )


class DeviceBusy(BridgeError):
    code = 409
    error = "device_busy"
    in_operation = True
    text = Text(
        "设备「{device}」正在执行另一个序列预设；请等它结束后重试",
        "Another sequence is running on the device '{device}'; try again when it has ended",
    )


class IdempotencyConflict(BridgeError):
    code = 409
    error = "idempotency_conflict"
    text = Text(
        "该编号已用于另一个不同的请求，未执行；请换一个新的 request_id",
        "This id was already used for a different request and nothing was executed; use a new id",
    )


class ValidationFailed(BridgeError):
    """A field is missing or of the wrong type or range; `errors` lists every fault."""

    code = 422
    error = "validation_error"
    text = Text("字段有误：{fields}", "Fields are wrong: {fields}")

    def __init__(self, errors: Sequence[FieldError], value: object = None) -> None:
        named = [(".".join(map(str, fault.loc)) or "request", fault.msg) for fault in errors]
        super().__init__(fields="; ".join(f"{name}: {msg}" for name, msg in named))
        self.errors = tuple(errors)
        self.about(named[0][0], value)


class Busy(BridgeError):
    code = 429
    error = "busy"
    text = Text(
        "桥接服务正忙，未执行；请稍后重试",
        "The bridge is busy and did not execute this; try again shortly",
    )


class DatabaseUnavailable(BridgeError):
    code = 503
    error = "database_unavailable"
    in_operation = True
    text = Text(
        "数据库暂时不可用，请稍后重试",
        "The database is unavailable for now; try again shortly",
    )


class MqttUnavailable(BridgeError):
    code = 503
    error = "mqtt_unavailable"
    in_operation = True
    text = Text(
        "MQTT 服务器暂时不可用，命令未发送；请稍后重试",
        "The MQTT broker is unavailable for now and the command was not sent; try again shortly",
    )


class PublishRefused(MqttUnavailable):
    text = Text(
        "MQTT 服务器拒绝了该命令（原因码 0x{reason:02X}），命令没有送达；"
        "请管理员检查桥接服务账号对 {topic} 的发布权限",
        "The MQTT broker refused the command (reason code 0x{reason:02X}) and it reached no one; "
        "let the administrator check that the bridge's broker user may publish to {topic}",
    )


class Draining(BridgeError):
    code = 503
    error = "draining"
    text = Text(
        "桥接服务正在停止，未执行；请稍后重试",
        "The bridge is stopping and did not execute this; try again shortly",
    )


class DatabaseTimeout(BridgeError):
    code = 504
    error = "database_timeout"
    in_operation = True
    text = Text(
        "数据库没有及时回应，请稍后重试",
        "The database did not answer in time; try again shortly",
    )


class RequestTimeout(BridgeError):
    code = 504
    error = "timeout"
    in_operation = True
    text = Text(
        "请求未能及时完成，命令没有发送；请稍后重试",
        "The request could not be completed in time and nothing was sent; try again shortly",
    )


class OutcomeUnknown(BridgeError):
    code = 504
    error = "outcome_unknown"
    in_operation = True
    text = Text(
        "命令已交给 MQTT 服务器但未得到确认，设备可能已收到；"
        "请先查看设备状态，再决定是否换新编号重发",
        "The command was handed to the broker and not acknowledged: the device may have received "
        "it. Look at the device first, then decide whether to send it anew under a new id",
    )
