"""Whether a server can be reached: its name, its port, its certificate."""

import asyncio
import contextlib
import socket
import ssl
import threading
from typing import Any

from ..errors import Text
from .findings import ANSWER_SECONDS, Finding, failed, ok


async def server_reached(host: str, port: int, names: str, unit: str) -> Finding:
    """Whether something takes TCP connections there; `names` are the settings to check if not."""
    where = f"{host}:{port}"
    look = Text(f"核对 {names}", f"check {names}")
    try:
        await _connect(host, port)
    except socket.gaierror as error:
        why = error.strerror
        return failed(f"找不到主机 {host}：{why}", f"the host {host} is not known: {why}", look)
    except ConnectionRefusedError:
        return failed(
            f"{where} 拒绝连接：没有程序在那里监听",
            f"{where} refuses: nothing listens there",
            Text("服务在运行吗？", "is it running?"),
            f"sudo systemctl status {unit}",
            look,
        )
    except TimeoutError:
        return failed(
            f"{where} 没有回应：主机没有开机，或被防火墙拦截",
            f"{where} does not answer: the machine is off, or a firewall drops what we send",
            look,
        )
    except OSError as error:
        words = error.strerror or str(error)
        return failed(f"无法到达 {where}：{words}", f"{where} can't be reached: {words}", look)
    return ok(f"{where} 可以连接", f"{where} takes connections")


async def _connect(host: str, port: int) -> None:
    """Connect to one of a host's addresses, and close; raises the most telling OSError."""
    addresses = await resolve(host, port)
    results = await asyncio.gather(*(_try_address(*address) for address in addresses))
    errors = [error for error in results if error is not None]
    if len(errors) == len(results):
        raise next(
            (error for error in errors if isinstance(error, ConnectionRefusedError)), errors[0]
        )


async def _try_address(family: int, address: Any) -> OSError | None:
    with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setblocking(False)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await asyncio.get_running_loop().sock_connect(tried, address)
        except OSError as error:
            return error
    return None


async def resolve(host: str, port: int) -> list[tuple[int, Any]]:
    """The addresses of a host, as (family, address).

    Looked up in a thread that is left behind if need be: the loop's own threads, with a resolver
    that hangs, would keep the program from ending. Raises socket.gaierror if there are none, or
    the name server does not answer.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[tuple[int, Any]] | OSError] = loop.create_future()

    def settle(found: list[tuple[int, Any]] | OSError) -> None:
        if not answer.done():
            answer.set_result(found)

    def look_up() -> None:
        found: list[tuple[int, Any]] | OSError
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = [(info[0], info[4]) for info in infos]
        except UnicodeError:
            found = socket.gaierror(socket.EAI_NONAME, "not a host name")
        except OSError as error:
            found = error
        # The loop may have ended meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=look_up, name=f"resolve {host}", daemon=True).start()
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            found = await answer
    except TimeoutError:
        found = socket.gaierror(socket.EAI_AGAIN, "the name server does not answer")
    if isinstance(found, OSError):
        raise found
    return found


def certificate_refused(error: ssl.SSLCertVerificationError, host: str, setting: str) -> Finding:
    """A certificate that does not verify; the codes are OpenSSL's (X509_V_ERR_…)."""
    match error.verify_code:
        case 9 | 10:
            return failed(
                "服务器证书已过期，或尚未生效",
                "the server's certificate has expired, or is not valid yet",
                Text("更新证书，并核对两边的时钟", "renew it, and check the clocks on both sides"),
            )
        case 62 | 64:
            return failed(
                f"服务器证书不是签发给 {host} 的",
                f"the server's certificate is not for {host}",
                Text("改用证书中的名称，或重新签发", "use the name in it, or issue a new one"),
            )
    return failed(
        f"不信任服务器证书：{error.verify_message}",
        f"the server's certificate is not trusted: {error.verify_message}",
        Text(
            f"{setting}=签发它的 CA 证书（PEM）",
            f"{setting}=the CA certificate that signed it (PEM)",
        ),
    )
