"""OpenAPI 3.1: the operations over HTTP, and what operators ask of a service."""

from collections.abc import Mapping
from typing import Any

from .. import __version__
from ..core.operations import OPERATIONS, Operation
from ..devices.models import JsonObject
from ..errors import Busy, Language, Text, Unauthorized
from .examples import EXAMPLES
from .refusals import Errors, by_code, example_of, refusals
from .schemas import ENVELOPE, camel, components, error_of, fields_of, ref, without_unused

TITLE = "MQTT 请求/应答桥接服务 / MQTT request/reply bridge"
DESCRIPTION = (
    "读取传感器、控制端口、执行预设；同样的操作也可通过 MQTT 调用，见 /asyncapi.json / "
    "Read sensors, control ports, run presets; the same operations answer over MQTT, "
    "see /asyncapi.json"
)
LICENSE = "MIT"
_JSON = "application/json"
_DEVICES, _SERVICE = "devices", "service"
# They need no key, whatever else does.
_OPEN = frozenset({"/", "/livez", "/readyz", "/health"})

_IDEMPOTENCY_KEY: JsonObject = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "同一编号的命令只执行一次；优先于 request_id / "
    "a command is executed once under one key; goes before request_id",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
}
_SCHEMES: JsonObject = {
    "Bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "Authorization: Bearer <API key>",
    },
    "ApiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
_HEADERS: dict[type, JsonObject] = {
    Busy: {"Retry-After": {"description": "秒 / seconds", "schema": {"type": "integer"}}},
    Unauthorized: {"WWW-Authenticate": {"schema": {"const": "Bearer"}}},
}


def openapi(language: Language, guarded: bool) -> JsonObject:
    """The document, without its servers; `guarded`: there are API keys."""
    schemas = components(ENVELOPE)
    document: JsonObject = {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": __version__,
            "description": DESCRIPTION,
            "license": {"name": LICENSE, "identifier": LICENSE},
        },
        "tags": [
            {"name": _DEVICES, "description": "设备 / devices"},
            {"name": _SERVICE, "description": "服务本身 / the service itself"},
        ],
        "paths": _paths(schemas, language, guarded),
        "components": {"schemas": schemas},
    }
    if guarded:
        document["components"]["securitySchemes"] = _SCHEMES
    document["security"] = [{name: []} for name in _SCHEMES] if guarded else []
    return without_unused(document)


def _paths(schemas: Mapping[str, JsonObject], language: Language, guarded: bool) -> JsonObject:
    paths: JsonObject = {}
    for row in OPERATIONS.values():
        described = _operation(row, schemas, language, guarded)
        paths.setdefault(row.path, {})[row.method.lower()] = described
    for path, described in _SERVICE_PATHS.items():
        paths[path] = {"get": dict(described)}
    if guarded:
        for path in _OPEN:
            paths[path]["get"]["security"] = []
    return paths


def _operation(
    row: Operation, schemas: Mapping[str, JsonObject], language: Language, guarded: bool
) -> JsonObject:
    described: JsonObject = {
        "operationId": row.name.replace("-", "_"),
        "tags": [_SERVICE if row.always else _DEVICES],
        "summary": _both(row.summary),
        "description": _both(row.summary),
    }
    if row.name == "health":
        return described | {"responses": _HEALTH}
    parameters = _parameters(row, schemas)
    if parameters:
        described["parameters"] = parameters
    if row.method == "POST":
        described["requestBody"] = _body(row)
    described["responses"] = {"200": _success(row)}
    for code, errors in by_code(refusals(row, "http", guarded=guarded)):
        described["responses"][str(code)] = _refusal(errors, language)
    return described


def _both(text: Text) -> str:
    return f"{text.zh} / {text.en}"


def _parameters(row: Operation, schemas: Mapping[str, JsonObject]) -> list[JsonObject]:
    if row.method == "POST":
        return [_IDEMPOTENCY_KEY]
    required = schemas[f"{camel(row)}Request"].get("required", [])
    example = EXAMPLES[row.name][0].fields if row.name in EXAMPLES else {}
    return [
        _parameter(row, name, schema, name in required, example.get(name))
        for name, schema in fields_of(row, schemas).items()
    ]


def _parameter(
    row: Operation, name: str, schema: JsonObject, required: bool, example: Any
) -> JsonObject:
    parameter: JsonObject = {
        "name": name,
        "in": "path" if f"{{{name}}}" in row.path else "query",
        "required": required,
        "schema": {of: value for of, value in schema.items() if of != "description"},
    }
    if "description" in schema:
        parameter["description"] = schema["description"]
    if example is not None:
        parameter["example"] = example
    return parameter


def _body(row: Operation) -> JsonObject:
    content: JsonObject = {"schema": ref(f"{camel(row)}Request")}
    examples = EXAMPLES.get(row.name, [])
    if examples:
        content["examples"] = {
            f"{row.name}-{number}": {"summary": example.summary, "value": example.fields}
            for number, example in enumerate(examples, start=1)
        }
    return {"required": True, "content": {_JSON: content}}


def _success(row: Operation) -> JsonObject:
    words = "成功；每项的回复各有自己的 code / done; each item's reply has a code of its own"
    return {
        "description": words if row.name == "batch" else "成功 / done",
        "content": {_JSON: {"schema": ref(f"{camel(row)}Reply")}},
    }


def _refusal(errors: Errors, language: Language) -> JsonObject:
    examples = {error.error: {"value": example_of(error, language)} for error in errors}
    response: JsonObject = {
        "description": ", ".join(examples),
        "content": {_JSON: {"schema": error_of(errors), "examples": examples}},
    }
    for error in errors:
        if error in _HEADERS:
            response["headers"] = _HEADERS[error]
    return response


def _answer(description: str, schema: JsonObject, media_type: str = _JSON) -> JsonObject:
    return {"description": description, "content": {media_type: {"schema": schema}}}


def _status(*values: str) -> JsonObject:
    return {
        "type": "object",
        "properties": {"status": {"enum": list(values)}},
        "required": ["status"],
    }


_HEALTH = {
    "200": _answer("数据库和 MQTT 都正常 / database and broker are there", ref("Health")),
    "503": _answer("至少一个不可用 / one of them is not", ref("Health")),
}


def _service(name: str, summary: str, responses: JsonObject) -> JsonObject:
    return {
        "operationId": name,
        "tags": [_SERVICE],
        "summary": summary,
        "description": summary,
        "responses": responses,
    }


_ROOT: JsonObject = {
    "type": "object",
    "properties": {
        "service": {"type": "string"},
        "version": {"type": "string"},
        "status": {"enum": ["running", "degraded"]},
        "mqtt_connected": {"type": "boolean"},
    },
    "required": ["service", "version", "status", "mqtt_connected"],
}
_SERVICE_PATHS: dict[str, JsonObject] = {
    "/": _service(
        "service",
        "服务信息 / what this is",
        {"200": _answer("服务、版本、状态 / service, version, status", _ROOT)},
    ),
    "/livez": _service(
        "livez",
        "进程是否存活 / whether the process lives",
        {"200": _answer("存活 / it lives", _status("alive"))},
    ),
    "/readyz": _service(
        "readyz",
        "是否可以接收请求 / whether it can take requests",
        {
            "200": _answer("可以 / it can", _status("ready")),
            "503": _answer("还不可以 / not now", _status("not ready")),
        },
    ),
    "/metrics": _service(
        "metrics",
        "Prometheus 指标 / metrics for Prometheus",
        {"200": _answer("指标 / metrics", {"type": "string"}, "text/plain")},
    ),
}
