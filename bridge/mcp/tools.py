"""The tools that a model is given: what each is called, what it takes and what it gives.

Each stands on one operation and has its schemas from there, made plain where models need it. What
is wrong with a call is told by that operation, in its own words. Nothing here knows of the SDK.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..apidocs import schemas
from ..core.operations import OPERATIONS
from ..devices.models import JsonObject
from ..errors import Text

Schemas = Mapping[str, JsonObject]

_DEVICE = "device_uuid"
_DEFAULT_DEVICE = "；不填则为默认设备 / leave it out for the default device"

LIST_DEVICES = "list_devices"

INSTRUCTIONS = Text(
    "读取和控制教室里的 ESP32 设备。如果有 list_devices，先用它按名称或房间找到设备的 device_uuid，"
    "没有就向用户询问；再用 describe_device 查看设备有哪些传感器、端口和预设；"
    "端口和预设可以直接用人起的名字。控制命令会立刻作用于真实设备。"
    "出错时，说明文字会告诉你下一步怎么做。",
    "Read and control ESP32 boards in classrooms. If there is list_devices, begin with it: it "
    "finds a device's device_uuid by name or room; if not, ask the user for it. Then "
    "describe_device tells the device's sensors, ports and presets; ports and presets go by the "
    "names that people gave them. Commands act on real devices at once. When something fails, the "
    "text says what to do next.",
)


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool, which is one operation."""

    name: str
    operation: str
    title: Text
    description: Text
    reads: bool = True

    def input_schema(self, known: Schemas, *, has_default: bool) -> JsonObject:
        """What it takes, as JSON Schema; with a default device, none need be named."""
        return _arguments(self.operation, known, has_default=has_default)

    def output_schema(self) -> JsonObject:
        """What it gives: an object, as MCP wants it."""
        return {"type": "object", **schemas.data_of(OPERATIONS[self.operation])}

    def fields(self, arguments: JsonObject, default_device: str) -> JsonObject:
        """The operation's fields of a call's arguments, which are not validated yet."""
        if _DEVICE not in OPERATIONS[self.operation].fields.model_fields:
            return arguments
        return _with_device(arguments, default_device)

    def result(self, _: JsonObject, data: Any) -> JsonObject:
        """What the tool returns, of the operation's fields and the data of its reply."""
        return dict(data)


@dataclass(frozen=True, slots=True)
class ManyReadings(Tool):
    """Several readings by one batch; one that fails says so beside the others."""

    def input_schema(self, known: Schemas, *, has_default: bool) -> JsonObject:
        item = _arguments("sensor-data", known, has_default=has_default)
        requests = {
            "type": "array",
            "description": "要读取的传感器 / the sensors to read",
            "minItems": 1,
            "maxItems": 100,
            "items": item,
        }
        return {"type": "object", "properties": {"requests": requests}, "required": ["requests"]}

    def output_schema(self) -> JsonObject:
        text = {"type": "string"}
        item = {
            "type": "object",
            "properties": {
                _DEVICE: text,
                "sensor": text,
                "code": {"type": "integer"},
                "reading": {"$ref": "#/$defs/Reading"},
                "error": text,
                "detail": text,
            },
            "required": [_DEVICE, "sensor", "code"],
        }
        readings = {"type": "array", "items": item}
        return {
            "type": "object",
            "properties": {"readings": readings},
            "required": ["readings"],
            "$defs": {"Reading": schemas.data_of(OPERATIONS["sensor-data"])},
        }

    def fields(self, arguments: JsonObject, default_device: str) -> JsonObject:
        requests = arguments.get("requests")
        if not isinstance(requests, list):
            return arguments
        return {"requests": [_item(request, default_device) for request in requests]}

    def result(self, fields: JsonObject, data: Any) -> JsonObject:
        both = zip(fields["requests"], data["results"], strict=True)
        return {"readings": [_outcome(request, body) for request, body in both]}


def _item(request: Any, default_device: str) -> Any:
    if not isinstance(request, dict):
        return request
    return {**_with_device(request, default_device), "operation": "sensor-data"}


def _outcome(request: JsonObject, body: JsonObject) -> JsonObject:
    asked = {name: str(request.get(name, "")) for name in (_DEVICE, "sensor")}
    if body["code"] == 200:
        return {**asked, "code": 200, "reading": body["data"]}
    return {**asked, "code": body["code"], "error": body["error"], "detail": body["detail"]}


def _with_device(arguments: JsonObject, default_device: str) -> JsonObject:
    # Models write null, or nothing between the quotes, for what they leave out.
    if default_device and arguments.get(_DEVICE) in (None, ""):
        return {**arguments, _DEVICE: default_device}
    return arguments


def _arguments(operation: str, known: Schemas, *, has_default: bool) -> JsonObject:
    row = OPERATIONS[operation]
    properties = {name: _never_null(of) for name, of in schemas.fields_of(row, known).items()}
    required = list(known[f"{schemas.camel(row)}Request"].get("required", ()))
    if has_default and _DEVICE in properties:
        device = properties[_DEVICE]
        properties[_DEVICE] = {**device, "description": device["description"] + _DEFAULT_DEVICE}
        required.remove(_DEVICE)
    return {"type": "object", "properties": properties, "required": required}


def _never_null(schema: JsonObject) -> JsonObject:
    """An optional field as a plain type: it is left out or it is there, never null.

    Several clients show a model the first type only, or refuse the tool.
    """
    beside = {name: of for name, of in schema.items() if name not in ("anyOf", "default")}
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    return {**kinds[0], **beside} if kinds else beside


_ROWS: tuple[Tool, ...] = (
    Tool(
        LIST_DEVICES,
        "devices",
        Text("列出设备", "List devices"),
        Text(
            "列出有哪些设备，可按名称或 UUID 的一部分（query）、房间、分组、是否在线查找。"
            "不知道设备的 device_uuid 时先用它；找到后用 describe_device 查看该设备能做什么。"
            "next_cursor 不为 null 时还有下一页，把它填入 cursor 再查。",
            "Which devices there are; finds them by a part of the name or UUID (query), by room, "
            "group, or whether they are online. Use it first when you don't know a device's "
            "device_uuid; then describe_device tells what that device can do. If next_cursor is "
            "not null there is another page: ask again with it as cursor.",
        ),
    ),
    Tool(
        "describe_device",
        "device",
        Text("查看设备", "Describe a device"),
        Text(
            "查看一个设备能做什么、现在怎么样：各传感器的最新值及其时间，端口（类型、编号、名称、"
            "别名），预设，是否在线。不知道传感器、端口或预设的名字时先用它，再读取或控制。",
            "What a device can do and how it is: each sensor's latest value and age, its ports "
            "(type, number, name, alias), its presets, whether it is online. Use it before reading "
            "or controlling when you don't know the names of sensors, ports or presets.",
        ),
    ),
    Tool(
        "read_sensor",
        "sensor-data",
        Text("读取传感器", "Read a sensor"),
        Text(
            "读取设备一个传感器的最新值、单位和读数时间，如 温度、湿度、雨水、DS18B20，"
            "或设备自己的传感器名。age_seconds 是读数距今的秒数；online 为 false 表示设备离线，"
            "读数可能已过时。",
            "The latest value of one sensor with its unit and time, such as temperature, "
            "humidity, rain, DS18B20, or a name of the device's own. age_seconds tells how old it "
            "is; with online false the device is offline and the reading may be out of date.",
        ),
    ),
    ManyReadings(
        "read_sensors",
        "batch",
        Text("读取多个传感器", "Read several sensors"),
        Text(
            "一次读取多个传感器，可以属于不同的设备，最多 100 个。结果顺序与请求相同；"
            "某一个失败时，它的 detail 说明原因，其余照常返回。",
            "Read up to 100 sensors at once, of one device or several. The readings come in the "
            "order asked for; where one fails, its detail says why, and the others are there.",
        ),
    ),
    Tool(
        "control_port",
        "control",
        Text("控制端口", "Control a port"),
        Text(
            "开关或设置真实设备的一个端口。用 port 指定人起的名称或别名（如 客厅灯），"
            "或用 port_type 和 port_id。led、relay 的 action 为 on / off；servo、pwm 为 set，"
            "并给出 value（角度 0–180，百分比 0–100）。成功表示命令已送到设备。",
            "Switch or set one port of a real device. Name it by port, the name or alias that "
            "people gave it, or by port_type and port_id. A led or relay takes the action on or "
            "off; a servo or pwm takes set and a value (0-180 degrees, 0-100 percent). When it "
            "succeeds the command has gone out to the device.",
        ),
        reads=False,
    ),
    Tool(
        "run_preset",
        "preset",
        Text("执行预设", "Run a preset"),
        Text(
            "执行设备上保存的预设，用它的 key 或名称。序列预设要等全部步骤执行完才返回，"
            "可能需要一两分钟；success 为 false 时 errors 说明哪些步骤没有执行。",
            "Run a preset stored for a device, by its key or name. A sequence returns when its "
            "last step has left, which may take a minute or two; with success false, errors tells "
            "what was not done.",
        ),
        reads=False,
    ),
)

TOOLS: Mapping[str, Tool] = {tool.name: tool for tool in _ROWS}
