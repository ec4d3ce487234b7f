"""Plain tools as their users type them: mosquitto_rr, mosquitto_pub and mosquitto_sub."""

from __future__ import annotations

import asyncio
import json
import subprocess
from contextlib import asynccontextmanager

import pytest

from tests.contract.cases import switch
from tests.lab.platform import BOARD_A
from tests.lab.servers import program

pytestmark = pytest.mark.usefixtures("bridge")

READING = f'{{"device_uuid":"{BOARD_A}","sensor":"温度"}}'
LIGHT = f'{{"device_uuid":"{BOARD_A}","port_type":"led","port_id":1,"action":"on"}}'


async def run(broker, tool: str, *arguments: str):
    """What the tool prints."""
    command = [program(tool), "-h", broker.host, "-p", str(broker.port), *arguments]
    done = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, timeout=10, check=True
    )
    assert done.stderr == b""
    return done.stdout.decode()


@asynccontextmanager
async def listening(broker, *arguments: str):
    """A mosquitto_sub that is subscribed; yields what returns the one message it prints."""
    # By lines: into a pipe it would say that it is subscribed only at its end.
    by_lines = [program("stdbuf"), "-oL", program("mosquitto_sub")]
    told = ["-h", broker.host, "-p", str(broker.port), "-d", "-C", "1", "-W", "5", *arguments]
    with subprocess.Popen([*by_lines, *told], stdout=subprocess.PIPE) as tool:

        def next_line_with(text: bytes) -> bytes:
            found = next((line for line in tool.stdout if text in line), None)
            assert found is not None, f"mosquitto_sub ended without {text!r}"
            return found

        async def message():
            return json.loads(await asyncio.to_thread(next_line_with, b'{"code"'))

        try:
            await asyncio.to_thread(next_line_with, b"Subscribed")
            yield message
        finally:
            tool.kill()


@pytest.mark.parametrize("qos", ["0", "1"])
async def test_mosquitto_rr_prints_the_reply(mosquitto, qos):
    out = await run(
        mosquitto, "mosquitto_rr", "-V", "5", "-q", qos, "-t", "plugin/request/sensor-data",
        "-e", "plugin/reply/me", "-m", READING,
    )  # fmt: skip
    assert json.loads(out)["data"]["value"] == 29.1


async def test_mosquitto_rr_switches_a_light(mosquitto, board):
    device = await board(BOARD_A)
    out = await run(
        mosquitto, "mosquitto_rr", "-V", "5", "-q", "1", "-t", "plugin/request/control",
        "-e", "plugin/reply/me", "-m", LIGHT,
    )  # fmt: skip
    assert json.loads(out)["data"]["result"] == "success"
    assert (await device.next_command()).json == switch("led", 1)


@pytest.mark.parametrize("version", ["mqttv311", "5"])
async def test_mosquitto_pub_and_sub_talk_over_the_default_reply_topic(mosquitto, version):
    async with listening(mosquitto, "-V", version, "-t", "plugin/reply/sensor-data") as message:
        await run(
            mosquitto, "mosquitto_pub", "-V", version, "-t", "plugin/request/sensor-data",
            "-m", READING,
        )  # fmt: skip
        assert (await message())["data"]["value"] == 29.1


async def test_mosquitto_pub_is_answered_on_the_topic_of_its_request_id(mosquitto):
    payload = READING[:-1] + ',"request_id":"r-7"}'
    async with listening(mosquitto, "-V", "mqttv311", "-t", "plugin/reply/+/r-7") as message:
        await run(mosquitto, "mosquitto_pub", "-V", "mqttv311", "-q", "1", "-t",
                  "plugin/request/sensor-data", "-m", payload)  # fmt: skip
        assert (await message())["request_id"] == "r-7"
