"""The command line."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from .arguments import parse
from .errors import Text
from .observability import logs
from .settings import Settings, SettingsError, load, reader_language


def main(arguments: list[str] | None = None) -> int:
    parsed = parse(arguments, reader_language(os.environ))
    try:
        if parsed.command == "demo":
            # The demo does not read `.env`.
            return _demo(parsed)
        return _COMMANDS[parsed.command](load(), parsed)
    except SettingsError as error:
        print(f"settings: {error}", file=sys.stderr)
    except ModuleNotFoundError as missing:
        # Without extras only the client is installed.
        words = Text(
            f"没有安装软件包 {missing.name}；请在本项目的目录中执行："
            f'pip install ".[{parsed.extra}]"',
            f"the package {missing.name} is not installed; run this in the project's folder: "
            f'pip install ".[{parsed.extra}]"',
        )
        print(f"{parsed.prog}: {words.in_(reader_language(os.environ))}", file=sys.stderr)
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


def _serve(settings: Settings, _: argparse.Namespace) -> int:
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
    return run_loop(run_demo(language, http_port=parsed.http_port, mqtt_port=parsed.mqtt_port))


def _doctor(settings: Settings, _: argparse.Namespace) -> int:
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
            # With MQTT_PROTOCOL=5 the client falls back to 3.1.1 if the broker knows no other.
            client = BridgeClient(
                BrokerAddress.of(settings),
                prefix=settings.mqtt_topic_prefix,
                client_level=parsed.client_level,
                # A retry counts as the same request if its reply topic is the same.
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
        # As bytes, so that the terminal's encoding does not change the reply.
        sys.stdout.buffer.write(written)
        return 0 if body["code"] == 200 else 1

    return run_loop(call())


def _mcp(settings: Settings, parsed: argparse.Namespace) -> int:
    from .mcp.stdio import serve

    logs.set_up("WARNING", settings.log_format)
    return run_loop(serve(settings, parsed.client_level))


_COMMANDS: dict[str, Callable[[Settings, argparse.Namespace], int]] = {
    "serve": _serve,
    "doctor": _doctor,
    "init-db": _init_db,
    "call": _call,
    "mcp": _mcp,
}
