"""The command line."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from . import __version__
from .observability import logs
from .settings import LANGUAGES, Settings, SettingsError, load, reader_language

_DISTRIBUTION = "mqtt-request-reply-bridge"


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the arguments name; the exit status."""
    parsed = _parser().parse_args(arguments)
    try:
        if parsed.own_world:
            # A world of its own: what `.env` says of another does not concern it.
            return _demo(parsed)
        command: Callable[[Settings, argparse.Namespace], int] = parsed.command
        return command(load(), parsed)
    except SettingsError as error:
        print(f"settings: {error}", file=sys.stderr)
    except ModuleNotFoundError as missing:
        # Without extras the client alone is installed.
        print(
            f"{parsed.prog}: the package {missing.name} is not installed; install the bridge with "
            f'its extra "{parsed.extra}", from its folder: pip install ".[{parsed.extra}]"',
            file=sys.stderr,
        )
    return 2


def run_loop(main_coroutine: Coroutine[Any, Any, int]) -> int:
    """Run a coroutine on the fastest loop of this platform that can watch a socket."""
    new_loop: Callable[[], asyncio.AbstractEventLoop]
    try:
        from uvloop import new_event_loop as new_loop
    except ImportError:
        # Windows' default has no add_reader.
        new_loop = asyncio.SelectorEventLoop
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main_coroutine)


def _serve(settings: Settings, parsed: argparse.Namespace) -> int:
    del parsed
    from .app.worker import serve

    logs.set_up(settings.log_level, settings.log_format)
    return run_loop(serve(settings))


def _init_db(settings: Settings, parsed: argparse.Namespace) -> int:
    from .database.init_db import make_table

    logs.set_up("ERROR", settings.log_format)
    return run_loop(make_table(settings, print_only=parsed.print))


def _demo(parsed: argparse.Namespace) -> int:
    from .demo import run_demo

    logs.set_up("WARNING", "text")
    language = parsed.language or reader_language(os.environ)
    demo = run_demo(language, http_port=parsed.http_port, mqtt_port=parsed.mqtt_port)
    return run_loop(demo)


def _doctor(settings: Settings, parsed: argparse.Namespace) -> int:
    del parsed
    from .doctor import examine

    logs.set_up("ERROR", settings.log_format)
    return run_loop(examine(settings))


def _call(settings: Settings, parsed: argparse.Namespace) -> int:
    import orjson

    from .client import BridgeClient, CallError
    from .link import BrokerAddress

    logs.set_up("ERROR", settings.log_format)

    async def call() -> int:
        try:
            # With MQTT_PROTOCOL=3.1.1 the address says so; else an old broker is found out.
            client = BridgeClient(
                BrokerAddress.of(settings),
                prefix=settings.mqtt_topic_prefix,
                client_level=parsed.client_level,
                # An id counts as the same one where the reply topic is the same.
                name=None if parsed.id is None else f"call-{parsed.id}",
            )
            async with client:
                body = await client.request(
                    parsed.operation,
                    dict(parsed.fields),
                    timeout=parsed.timeout,
                    request_id=parsed.id,
                )
        except (CallError, ValueError, OSError) as error:
            print(f"call: {error}", file=sys.stderr)
            return 2
        written = orjson.dumps(body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        # As bytes: a terminal's or pipe's encoding must not change what the bridge said.
        sys.stdout.buffer.write(written)
        return 0 if body["code"] == 200 else 1

    return run_loop(call())


def _mcp(settings: Settings, parsed: argparse.Namespace) -> int:
    from .mcp.stdio import serve

    logs.set_up("WARNING", settings.log_format)
    return run_loop(serve(settings, parsed.client_level))


def _field(text: str) -> tuple[str, Any]:
    """`name=value`: the value as JSON where it is JSON, else as text."""
    import orjson

    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    try:
        return name, orjson.loads(value)
    except orjson.JSONDecodeError:
        return name, value


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return seconds


def _parser() -> argparse.ArgumentParser:
    # The console script bears the name of the distribution.
    script = Path(sys.argv[0]).stem
    prog = script if script == _DISTRIBUTION else "run.py"
    parser = argparse.ArgumentParser(
        prog=prog,
        description="An MQTT request/reply bridge between plugins and ESP32 boards. "
        "Without a command it serves, with the settings of the environment and .env.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.set_defaults(command=_serve, extra="server", prog=prog, own_world=False)
    commands = parser.add_subparsers(title="commands", metavar="")
    serve = commands.add_parser("serve", help="serve requests over MQTT and HTTP (the default)")
    serve.set_defaults(command=_serve)
    demo = commands.add_parser(
        "demo",
        help="try it: an embedded broker and database, simulated boards; nothing left behind",
    )
    demo.add_argument("--http-port", type=int, default=None, help="instead of 9001, or a free one")
    demo.add_argument("--mqtt-port", type=int, default=None, help="instead of 1883, or a free one")
    demo.add_argument(
        "--language",
        choices=LANGUAGES,
        default=None,
        help="instead of that of LANGUAGE or the locale",
    )
    demo.set_defaults(own_world=True, extra="demo")
    doctor = commands.add_parser(
        "doctor", help="check settings, database, broker and port, and say what to mend"
    )
    doctor.set_defaults(command=_doctor)
    init_db = commands.add_parser(
        "init-db", help="make our own table in the database, for DEDUP_STORE=mysql"
    )
    init_db.add_argument(
        "--print", action="store_true", help="print the SQL for an administrator instead"
    )
    init_db.set_defaults(command=_init_db)
    call = commands.add_parser(
        "call",
        help="ask a running bridge over MQTT, and print its reply",
        description="Ask a running bridge over MQTT and print its reply as JSON. Exit status: 0 "
        "for code 200, 1 for another code, 2 when no reply came.",
    )
    call.add_argument("operation", help="such as sensor-data; `operations` lists them")
    call.add_argument(
        "fields",
        nargs="*",
        type=_field,
        metavar="field=value",
        help="a value that is JSON is sent as that, any other as text; to send a number as text, "
        """quote it twice: device_uuid='"1001"'""",
    )
    call.add_argument("--timeout", type=_seconds, metavar="S", help="seconds to wait for the reply")
    call.add_argument("--id", help="the request's id: under one id a command is executed once")
    call.add_argument(
        "--client-level",
        metavar="USER",
        help="our broker user name, where the broker's ACL wants it in the topics",
    )
    call.set_defaults(command=_call)
    mcp = commands.add_parser(
        "mcp",
        help="give a running bridge to a language model: an MCP server on stdin and stdout",
        description="An MCP server on standard input and output, for clients such as Claude "
        "Desktop that start it themselves. It asks a running bridge over MQTT, with the MQTT_ "
        "settings of the environment and .env, of the device MCP_DEVICE_UUID where the model "
        "names none.",
    )
    mcp.add_argument(
        "--client-level",
        metavar="USER",
        help="our broker user name, where the broker's ACL wants it in the topics",
    )
    mcp.set_defaults(command=_mcp)
    return parser
