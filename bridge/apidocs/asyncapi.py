"""AsyncAPI 3.0: the operations over MQTT, as request and reply.

https://www.asyncapi.com/docs/reference/specification/v3.0.0 and the MQTT bindings 0.2.0 of
https://github.com/asyncapi/bindings.
"""

from typing import Any

from .. import __version__
from ..core.operations import OPERATIONS, Operation
from ..devices.models import JsonObject
from ..settings import Settings
from .examples import EXAMPLES
from .openapi import LICENSE, TITLE
from .refusals import example_of, refusals
from .schemas import ENVELOPE, REPLY_TO, camel, components, error_of, ref, without_unused

_JSON = "application/json"
_BINDING = "0.2.0"
_HERE = ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # noqa: S104  recognised, not bound
_DESCRIPTION = (
    "请求发到 {prefix}/request/<operation>，或再加一级客户端名；回复发到 Response Topic，"
    "没有则发到负载中的 reply_to，再没有则发到 {prefix}/reply/<operation>[/<request_id>]。"
    "Correlation Data 原样返回。 / "
    "Requests go to {prefix}/request/<operation>, or to one more level with the client's name; "
    "the reply goes to the Response Topic, else to the payload's reply_to, else to "
    "{prefix}/reply/<operation>[/<request_id>]. Correlation Data comes back byte for byte."
)
# Where a request says where its reply shall go.
_REPLY_ADDRESS = {"5": "$message.header#/responseTopic", "3.1.1": "$message.payload#/reply_to"}
_PROTOCOL_VERSION = {"5": "5.0", "3.1.1": "3.1.1"}

_CORRELATION: JsonObject = {
    "type": "string",
    "description": "Correlation Data，任意字节 / any bytes",
}
_TRACE: JsonObject = {
    "traceparent": {"type": "string", "description": "W3C Trace Context"},
    "tracestate": {"type": "string", "description": "W3C Trace Context"},
}
_REQUEST_HEADERS: JsonObject = {
    "type": "object",
    "properties": {
        "responseTopic": {
            "type": "string",
            "description": "Response Topic，回复发往此处 / where the reply goes",
        },
        "correlationData": _CORRELATION,
        **_TRACE,
    },
}
_REPLY_HEADERS: JsonObject = {
    "type": "object",
    "properties": {
        "correlationData": _CORRELATION,
        "__stat": {"type": "string", "description": "code，文本形式 / the code, as text"},
        "__protVer": {"type": "string", "description": "协议版本 / the protocol version"},
        **_TRACE,
    },
}
_ERROR_HEADERS: JsonObject = {
    "type": "object",
    "properties": {
        **_REPLY_HEADERS["properties"],
        "__stMsg": {"type": "string", "description": "detail"},
        "__apErr": {
            "type": "string",
            "enum": ["true", "false"],
            "description": "true：操作本身失败 / the operation failed, not the request",
        },
        "__propName": {"type": "string", "description": "有误的字段 / the property at fault"},
        "__propVal": {"type": "string", "description": "它的值 / its value"},
    },
}


def asyncapi(settings: Settings) -> JsonObject:
    """The document, without its servers."""
    prefix = settings.mqtt_topic_prefix
    channels: JsonObject = {
        "presence": {
            "address": f"{prefix}/status/{{instance}}",
            "messages": {"presence": {"$ref": "#/components/messages/Presence"}},
            "parameters": {"instance": {"description": "MQTT_INSTANCE"}},
        }
    }
    operations: JsonObject = {
        "presence": {
            "action": "send",
            "channel": {"$ref": "#/channels/presence"},
            "summary": "在线状态 / whether a bridge is there",
            "description": "在线状态，保留消息 / whether a bridge is there, retained",
            "bindings": {"mqtt": {"qos": 1, "retain": True, "bindingVersion": _BINDING}},
        }
    }
    messages: JsonObject = {"Presence": _message("Presence", _PRESENCE)}
    for row in OPERATIONS.values():
        if not row.over_mqtt:
            continue
        channels |= _channels(row, prefix)
        messages |= _messages_of(row, settings)
        name = row.name.replace("-", "_")
        operations[name] = _operation(row, row.name, settings)
        operations[f"{name}_by_client"] = _operation(row, f"{row.name}-by-client", settings)
    document = {
        "asyncapi": "3.0.0",
        "info": {
            "title": TITLE,
            "version": __version__,
            "description": _DESCRIPTION.format(prefix=prefix),
            "license": {"name": LICENSE},
            "tags": [{"name": "devices", "description": "设备 / devices"}],
        },
        "defaultContentType": _JSON,
        "channels": channels,
        "operations": operations,
        "components": {
            "schemas": components(ENVELOPE | REPLY_TO),
            "messages": messages,
            "securitySchemes": {"user": {"type": "userPassword"}},
        },
    }
    return without_unused(document)


def mqtt_servers(settings: Settings, reached_at: str) -> JsonObject:
    """The broker, for a reader who reached us at `reached_at`, a host as in a URL."""
    host = settings.mqtt_broker
    if host in _HERE:
        host = reached_at
    elif ":" in host:
        host = f"[{host}]"
    server: JsonObject = {
        "host": f"{host}:{settings.mqtt_port}",
        "protocol": "secure-mqtt" if settings.mqtt_tls else "mqtt",
        "protocolVersion": _PROTOCOL_VERSION[settings.mqtt_protocol],
    }
    if settings.mqtt_username:
        server["security"] = [{"$ref": "#/components/securitySchemes/user"}]
    return {"broker": server}


def _channels(row: Operation, prefix: str) -> JsonObject:
    request = {"request": {"$ref": f"#/components/messages/{camel(row)}Request"}}
    return {
        row.name: {"address": f"{prefix}/request/{row.name}", "messages": request},
        f"{row.name}-by-client": {
            "address": f"{prefix}/request/{row.name}/{{client}}",
            "messages": request,
            "parameters": {
                "client": {"description": "请求者的 MQTT 用户名 / the requester's broker user name"}
            },
        },
        f"{row.name}-reply": {
            # Each request names its reply topic.
            "address": None,
            "messages": {
                "reply": {"$ref": f"#/components/messages/{camel(row)}Reply"},
                "error": {"$ref": f"#/components/messages/{camel(row)}Error"},
            },
        },
    }


def _operation(row: Operation, channel: str, settings: Settings) -> JsonObject:
    replies = f"#/channels/{row.name}-reply"
    return {
        "action": "receive",
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/request"}],
        "summary": f"{row.summary.zh} / {row.summary.en}",
        "description": f"{row.summary.zh} / {row.summary.en}",
        "bindings": {"mqtt": {"qos": 1, "retain": False, "bindingVersion": _BINDING}},
        "reply": {
            "address": {"location": _REPLY_ADDRESS[settings.mqtt_protocol]},
            "channel": {"$ref": replies},
            "messages": [{"$ref": f"{replies}/messages/{kind}"} for kind in ("reply", "error")],
        },
    }


def _messages_of(row: Operation, settings: Settings) -> JsonObject:
    name = camel(row)
    errors = refusals(row, "mqtt")
    examples = [
        {"summary": example.summary, "payload": example.fields}
        for example in EXAMPLES.get(row.name, [])
    ]
    refused = [
        {"name": error.error, "payload": example_of(error, settings.language)} for error in errors
    ]
    return {
        f"{name}Request": _message(
            f"{name}Request", ref(f"{name}Request"), _REQUEST_HEADERS, examples
        ),
        f"{name}Reply": _message(f"{name}Reply", ref(f"{name}Reply"), _REPLY_HEADERS),
        f"{name}Error": _message(f"{name}Error", error_of(errors), _ERROR_HEADERS, refused),
    }


def _message(
    name: str,
    payload: JsonObject,
    headers: JsonObject | None = None,
    examples: list[Any] | None = None,
) -> JsonObject:
    message: JsonObject = {
        "name": name,
        "contentType": _JSON,
        "payload": payload,
        "bindings": {
            "mqtt": {
                "payloadFormatIndicator": 1,
                "contentType": _JSON,
                "bindingVersion": _BINDING,
            }
        },
    }
    if headers is not None:
        message["headers"] = headers
        message["correlationId"] = {"location": "$message.header#/correlationData"}
    if examples:
        message["examples"] = examples
    return message


_PRESENCE: JsonObject = {
    "type": "object",
    "properties": {
        "status": {"enum": ["online", "offline"]},
        "version": {"type": "string"},
        "since": {"type": "string", "format": "date-time"},
    },
    "required": ["status"],
}
