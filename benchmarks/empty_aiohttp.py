"""The yardstick for HTTP: an empty aiohttp application, whose handler does nothing.

It answers every request with a plain `web.Response` of one constant body, as long as a reading's.
"""

import asyncio
import os

import uvloop
from aiohttp import web

BODY = (
    '{"code":200,"msg":"成功","data":{"value":29.1,"unit":"°C","sensor_name":"temperature",'
    '"sensor_type":"DHT11","timestamp":"2025-01-01T12:00:00","device_name":"bench-1234",'
    '"last_seen":"2025-01-01T12:00:00","raw_value":"29.1","online":true,"age_seconds":12.345}}'
).encode()


async def answer(_request: web.Request) -> web.Response:
    return web.Response(body=BODY, content_type="application/json")


async def main() -> None:
    app = web.Application()
    app.router.add_get("/api/sensor-data", answer)
    app.router.add_post("/api/control", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(os.environ["SERVICE_PORT"])).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
