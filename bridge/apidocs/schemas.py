"""JSON Schemas (2020-12) of requests and replies, from the models that the code itself uses."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NotRequired

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from typing_extensions import TypedDict  # pydantic takes typing's from Python 3.12 on only

from ..core.operations import OPERATIONS, Operation
from ..core.replies import SUCCESS
from ..devices.models import JsonObject
from ..errors import BridgeError

_REF = "#/components/schemas/"

_REQUEST_ID: JsonObject = {
    "type": "string",
    "pattern": "^[A-Za-z0-9._:-]{1,128}$",
    "description": "请求编号，原样返回；同一编号的命令只执行一次 / "
    "comes back as it is; a command is executed once under one id",
}
# What may stand beside an operation's fields, on either transport.
ENVELOPE: dict[str, JsonObject] = {
    "request_id": _REQUEST_ID,
    "expires_at": {
        "type": "number",
        "description": "Unix 秒；过了此时刻就不再执行 / Unix seconds; not executed after this time",
    },
}
REPLY_TO: dict[str, JsonObject] = {
    "reply_to": {
        "type": "string",
        "description": "回复主题，用于 MQTT 3.1.1；MQTT 5 请用 Response Topic / "
        "where the reply goes, for MQTT 3.1.1; with MQTT 5 use the Response Topic",
    },
}
# What the fields of replies mean, by name; the same name means the same everywhere.
_MEANINGS = {
    "value": "数值，布尔为 1 / 0；两者都不是时为文本，同 raw_value / "
    "a number; booleans are 1 or 0; text, as in raw_value, if it is neither",
    "unit": "单位 / its unit",
    "sensor_name": "库中的传感器名 / the sensor's name as stored",
    "sensor_type": "传感器型号 / the sensor's type",
    "timestamp": "读数时间 / when it was read",
    "last_seen": "设备最后在线时间 / when the device was last seen",
    "raw_value": "库中的原文 / the value as stored",
    "online": "设备是否在线 / whether the device is online",
    "age_seconds": "读数距今的秒数 / the reading's age in seconds",
    "device_name": "设备名称 / the device's name",
    "topic": "命令所发往的主题 / the topic that the command went to",
    "command": "发给设备的命令 / the command as the device gets it",
    "success": "是否全部执行 / whether all of it was done",
    "message": "结果说明 / what happened, in words",
    "executed_steps": "已发出的步骤 / the steps that left",
    "errors": "出错之处 / what went wrong",
    "alias": "用户起的别名 / what a person called it",
    "total_seconds": "各步骤间隔之和 / what its delays add up to",
    "results": "每个请求的回复，顺序相同 / one reply per request, in order",
    "detail": "给人或模型看的说明 / a sentence for a person or a model",
    "error": "给程序看的错误名 / the error's name, for programs",
    "incident": "日志中的编号 / the number under which it is in the log",
    "in_flight": "正在处理的请求数 / requests in flight",
    "devices": "这一页的设备 / the devices of this page",
    "next_cursor": "下一页的 cursor，末页为 null / the next page's cursor, null at the end",
    "room": "房间 / its room",
    "group": "分组 / its group",
    "floor": "楼层 / its floor",
    "product": "产品名称 / its product's name",
    "fields": "字段的 JSON Schema / the JSON Schema of its fields",
}
_TIME = "ISO 8601，数据库时区，不带偏移 / in the database's zone, without offset"


class FieldError(TypedDict):
    """One fault in one field / 一个字段的错误"""

    loc: list[str | int]
    msg: str
    type: str


class Error(TypedDict):
    """The body of every answer that is not 200 / 失败时的回复"""

    code: int
    msg: Literal["失败"]
    data: None
    detail: str
    error: str
    errors: NotRequired[list[FieldError]]
    incident: NotRequired[str]
    request_id: NotRequired[str]


class _Generator(GenerateJsonSchema):
    """pydantic's, without titles that repeat names, and with times as they are really sent."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        del schema
        return False

    def datetime_schema(self, schema: core_schema.DatetimeSchema) -> JsonSchemaValue:
        # Naive, so not the `date-time` of RFC 3339, which wants an offset.
        del schema
        return {"type": "string", "examples": ["2025-09-01T08:30:00"], "description": _TIME}


def ref(name: str) -> JsonObject:
    return {"$ref": _REF + name}


def camel(row: Operation) -> str:
    """`SensorData`, of `sensor-data`."""
    return "".join(word.capitalize() for word in row.name.split("-"))


def components(envelope: Mapping[str, JsonObject]) -> dict[str, JsonObject]:
    """Every schema by its name: `…Request` and `…Reply` of each operation, and what they use.

    A request holds an operation's fields and those of `envelope`.
    """
    rows = OPERATIONS.values()
    inputs: list[tuple[str, Literal["validation", "serialization"], TypeAdapter[Any]]] = [
        ("Error", "serialization", TypeAdapter(Error))
    ]
    for row in rows:
        inputs.append((f"{row.name} fields", "validation", TypeAdapter(row.fields)))
        inputs.append((f"{row.name} data", "serialization", TypeAdapter(row.data)))
    schemas, rest = TypeAdapter.json_schemas(
        inputs, ref_template=_REF + "{model}", schema_generator=_Generator
    )
    found: dict[str, JsonObject] = dict(rest["$defs"])
    for schema in found.values():
        _tell_meanings(schema)
    for row in rows:
        found[f"{camel(row)}Request"] = _request(found.get(row.fields.__name__, {}), envelope)
        found[f"{camel(row)}Reply"] = _reply(schemas[f"{row.name} data", "serialization"])
    found |= _batch_items(found)
    for name in {row.fields.__name__ for row in rows}:
        # Each is contained in its operation's request.
        found.pop(name, None)
    return dict(sorted(found.items()))


def data_of(row: Operation) -> JsonObject:
    """The schema of an operation's data by itself: what it refers to is in its own `$defs`."""
    schema = TypeAdapter(row.data).json_schema(mode="serialization", schema_generator=_Generator)
    for part in (schema, *schema.get("$defs", {}).values()):
        _tell_meanings(part)
        # A docstring, meant for those who read the code.
        part.pop("description", None)
    return schema


def without_unused(document: JsonObject) -> JsonObject:
    """The document with only those component schemas that something in it refers to."""
    schemas = document["components"]["schemas"]
    others = {name: of for name, of in document["components"].items() if name != "schemas"}
    waiting = list(_referred({**document, "components": others}))
    used: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in used:
            used.add(name)
            waiting += _referred(schemas[name])
    kept = {name: schema for name, schema in schemas.items() if name in used}
    return {**document, "components": {**document["components"], "schemas": kept}}


def _referred(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        reference = part.get("$ref")
        if isinstance(reference, str) and reference.startswith(_REF):
            yield reference.removeprefix(_REF)
    within = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    for each in within:
        yield from _referred(each)


def fields_of(row: Operation, schemas: Mapping[str, JsonObject]) -> dict[str, JsonObject]:
    properties: dict[str, JsonObject] = schemas[f"{camel(row)}Request"]["properties"]
    return properties


def error_of(errors: list[type[BridgeError]]) -> JsonObject:
    """The body with which one of these errors is answered."""
    properties: JsonObject = {"error": {"enum": sorted({error.error for error in errors})}}
    codes = sorted({error.code for error in errors})
    properties["code"] = {"enum": codes}
    return {"allOf": [ref("Error"), {"type": "object", "properties": properties}]}


def _request(fields: JsonObject, envelope: Mapping[str, JsonObject]) -> JsonObject:
    schema: JsonObject = {
        "type": "object",
        "properties": {**fields.get("properties", {}), **envelope},
    }
    for name in ("required", "anyOf"):
        if name in fields:
            schema[name] = fields[name]
    return schema


def _reply(data: JsonObject) -> JsonObject:
    return {
        "type": "object",
        "properties": {
            "code": {"const": 200},
            "msg": {"const": SUCCESS},
            "data": data,
            "request_id": _REQUEST_ID,
        },
        "required": ["code", "msg", "data"],
    }


def _batch_items(found: dict[str, JsonObject]) -> dict[str, JsonObject]:
    """What a batch takes and what it answers, item by item; the models say "an object" only."""
    rows = [row for row in OPERATIONS.values() if row.in_batch]
    items: dict[str, JsonObject] = {}
    for row in rows:
        request = found[f"{camel(row)}Request"]
        # An item has no reply topic of its own.
        own = {name: of for name, of in request["properties"].items() if name not in REPLY_TO}
        items[f"{camel(row)}Item"] = {
            "type": "object",
            "properties": {"operation": {"const": row.name}, **own},
            "required": ["operation", *request.get("required", [])],
        }
        if "anyOf" in request:
            items[f"{camel(row)}Item"]["anyOf"] = request["anyOf"]
    requests = found["BatchRequest"]["properties"]["requests"]
    requests["items"] = {"oneOf": [ref(name) for name in items]}
    replies = [ref(f"{camel(row)}Reply") for row in rows]
    found["BatchResult"]["properties"]["results"]["items"] = {"anyOf": [*replies, ref("Error")]}
    return items


def _tell_meanings(schema: JsonObject) -> None:
    for name, property_ in schema.get("properties", {}).items():
        if name in _MEANINGS and "$ref" not in property_:
            property_.setdefault("description", _MEANINGS[name])
