"""The port that HTTP is served on: whether it is free, and who has it if not."""

import contextlib
import errno
import ipaddress
import os
import socket
from typing import Any

import aiohttp
import orjson

from ..errors import Text
from ..settings import Settings
from .connectivity import resolve
from .findings import Examination, Finding, failed, note, ok


async def free(examination: Examination) -> Finding:
    settings = examination.settings
    host, port = settings.service_host, settings.service_port
    where = f"{host}:{port}"
    try:
        for family, address in await resolve(host, port):
            _bind(family, address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return await _taken(settings)
        words = error.strerror or str(error)
        return failed(
            f"不能监听 {where}：{words}",
            f"the bridge can't listen on {where}: {words}",
            Text(
                "核对 SERVICE_HOST（本机的地址）和 SERVICE_PORT（1024 以上）",
                "check SERVICE_HOST (an address of this machine) and SERVICE_PORT (1024 or more)",
            ),
        )
    return ok(f"{where} 空闲", f"{where} is free")


def _bind(family: int, address: Any) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as door:
        if os.name == "posix":
            # As servers do: else a port in TIME_WAIT counts as taken.
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            door.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        door.bind(address)


async def _taken(settings: Settings) -> Finding:
    port = settings.service_port
    where = f"{settings.service_host}:{port}"
    health = await _health(settings)
    if health is not None:
        state = f"{health['version']}, {health['status']}"
        return note(
            f"{where} 上已有一个桥接服务在运行（{state}）",
            f"a bridge is already running on {where} ({state})",
            Text(
                "要再运行一个：换一个 SERVICE_PORT",
                "to run another bridge, set another SERVICE_PORT",
            ),
        )
    usual = Text(
        "占用 9001 的通常是 Mosquitto 的 WebSocket 监听，或旧的 plugin-backend 服务",
        "9001 is usually taken by Mosquitto's WebSocket listener, or by the old plugin-backend",
    )
    return failed(
        f"{where} 被别的程序占用",
        f"another program has taken {where}",
        *((usual,) if port == 9001 else ()),
        f"sudo ss -ltnp 'sport = :{port}'",
        Text("停止它，或换一个 SERVICE_PORT", "stop it, or set another SERVICE_PORT"),
    )


async def _health(settings: Settings) -> dict[str, Any] | None:
    host = _nearest(settings.service_host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{settings.service_port}/health"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2.0)) as session,
            session.get(url) as response,
        ):
            health = orjson.loads(await response.content.read(10_000))
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
    ours = {"status", "version", "mqtt", "uptime_seconds"}
    return health if isinstance(health, dict) and ours <= health.keys() else None


def _nearest(host: str) -> str:
    """Where a server that listens on `host` can be reached from here."""
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        if address.is_unspecified:
            return "127.0.0.1" if address.version == 4 else "::1"
    return host
