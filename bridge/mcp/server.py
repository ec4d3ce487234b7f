"""The MCP server: our tools as the official SDK serves them, whoever answers the questions."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from mcp.server import Server, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    TextContent,
    ToolAnnotations,
)
from mcp_types import Tool as ListedTool

from .. import __version__
from ..apidocs import schemas
from ..core.envelope import Envelope, open_payload
from ..devices.models import JsonObject
from ..errors import Text
from ..settings import Settings
from .tools import INSTRUCTIONS, LIST_DEVICES, TOOLS, Tool

Context = ServerRequestContext[Any, Any]
# Whether whoever sent a message may list devices.
MayList = Callable[[Context], bool]
# Asks for an operation with these fields; the reply's body, as the wire contract has it. Whatever
# goes wrong is a body too, whose `detail` says what to do.
Ask = Callable[[str, JsonObject, Context], Awaitable[JsonObject]]


def make_server(settings: Settings, ask: Ask, may_list: MayList) -> Server[Any]:
    """The server; its tools ask by `ask`, of `MCP_DEVICE_UUID` where a model names no device.

    `list_devices` is offered to those who may list devices alone; others who call it are told why
    they may not.
    """
    # As the network's own checks do it: the operation judges the arguments, and says in the
    # contract's words what is wrong with them. So nothing is validated on the way there.
    default_device = settings.mcp_device_uuid
    listed = _listed(settings)

    async def list_tools(context: Context, _: PaginatedRequestParams | None) -> ListToolsResult:
        offered = listed if may_list(context) else [t for t in listed if t.name != LIST_DEVICES]
        return ListToolsResult(tools=offered)

    async def call_tool(context: Context, params: CallToolRequestParams) -> CallToolResult:
        tool = TOOLS.get(params.name)
        if tool is None:
            raise MCPError(INVALID_PARAMS, f"no such tool; the tools are: {', '.join(TOOLS)}")
        opened = _read_again(params.arguments or {})
        # With fields it is the operation that refuses them, and is seen to.
        if opened.refusal is not None and not opened.fields:
            return _failure(opened.refusal.detail(settings.language))
        fields = tool.fields(opened.fields, default_device)
        body = await ask(tool.operation, fields, context)
        if body["code"] != 200:
            return _failure(body["detail"])
        result = tool.result(fields, body["data"])
        # The text is for clients that know no structured results, and says the same.
        text = _text(orjson.dumps(result).decode())
        return CallToolResult(content=[text], structured_content=result)

    return Server(
        "mqtt-request-reply-bridge",
        version=__version__,
        title="AIoT 设备 / AIoT devices",
        instructions=_in_both(INSTRUCTIONS, settings),
        get_tool_input_schema={tool.name: tool.input_schema for tool in listed}.get,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )


def _read_again(arguments: JsonObject) -> Envelope:
    """The arguments as our own parser reads them, or refuses to.

    The SDK's takes what no request of ours can hold: integers without end, NaN, lone surrogates.
    """
    try:
        payload = json.dumps(arguments, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        # A surrogate, an integer of thousands of digits, or nesting without end.
        payload = b""
    return open_payload(payload, len(payload))


def _failure(detail: str) -> CallToolResult:
    return CallToolResult(content=[_text(detail)], is_error=True)


def _listed(settings: Settings) -> list[ListedTool]:
    known = schemas.components({})
    has_default = bool(settings.mcp_device_uuid)
    return [
        ListedTool(
            name=tool.name,
            title=tool.title.in_(settings.language),
            description=_in_both(tool.description, settings),
            input_schema=tool.input_schema(known, has_default=has_default),
            output_schema=tool.output_schema(),
            annotations=_hints(tool),
        )
        for tool in TOOLS.values()
    ]


def _hints(tool: Tool) -> ToolAnnotations:
    if tool.reads:
        return ToolAnnotations(read_only_hint=True, open_world_hint=False)
    # What a command does to the world can't be known here: a client does well to ask its user.
    return ToolAnnotations(read_only_hint=False, destructive_hint=True, open_world_hint=False)


def _in_both(text: Text, settings: Settings) -> str:
    """A text in both languages, ours first: models answer in their user's, which we don't know."""
    first, second = (text.en, text.zh) if settings.language == "en" else (text.zh, text.en)
    return f"{first}\n{second}"


def _text(text: str) -> TextContent:
    return TextContent(type="text", text=text)
