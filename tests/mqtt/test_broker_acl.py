"""The Mosquitto configuration that we ship, as it is: what it lets everyone do, and what nobody.

`deploy/mosquitto/` runs here as a distribution would include it, with only paths and the port
replaced; a bridge, plugins, the platform's service and a board log in to it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any, Protocol

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties

from bridge.core.operations import OPERATION_NAMES
from tests.lab.board import Board
from tests.lab.bridge import PROJECT, Bridge
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import write_password_file
from tests.lab.mqtt import RefusedError
from tests.lab.platform import BOARD_A, BOARD_B
from tests.lab.requester import ABSENT, Reply, Requester
from tests.lab.servers import Server, program

DEPLOYED = PROJECT / "deploy" / "mosquitto"
USERS = ("bridge", "plugin-a", "plugin-b", "platform", BOARD_A, BOARD_B)
# As docs/security.md has it: names that are not for everyone to know.
SHARE, INSTANCE = "bridge-8f3a1c", "bridge-57d2e0"

NOT_AUTHORIZED = 0x87
BAD_LOGIN = {0x86, NOT_AUTHORIZED}

READING = {"device_uuid": BOARD_A, "sensor": "温度"}
LIGHT = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
LIGHT_COMMAND = {"cmd": "led", "device_id": 1, "action": "on"}


def password(user: str) -> str:
    return f"{user}-pa55"


class Deployed(Server):
    """Mosquitto with our files, included by a configuration like Debian's own."""

    def __init__(self) -> None:
        super().__init__()
        included = self.folder / "conf.d"
        included.mkdir()
        self._config = self.folder / "mosquitto.conf"
        lines = [
            "persistence true",
            f"persistence_location {self.folder}/",
            "log_dest stderr",
            # Else it becomes the user `mosquitto`, who may not read these files.
            *(["user root"] if os.geteuid() == 0 else []),
            f"include_dir {included}",
        ]
        self._config.write_text("\n".join(lines) + "\n")
        write_password_file(self.folder / "passwd", {user: password(user) for user in USERS})
        ours = (DEPLOYED / "mosquitto.conf").read_text()
        for there, here in (
            ("\nlistener 1883\n", f"\nlistener {self.port} {self.host}\n"),
            ("\npassword_file /etc/mosquitto/passwd\n", f"\npassword_file {self.folder}/passwd\n"),
            ("\nacl_file /etc/mosquitto/acl\n", f"\nacl_file {DEPLOYED}/acl\n"),
        ):
            assert ours.count(there) == 1
            ours = ours.replace(there, here)
        (included / "bridge.conf").write_text(ours)

    def command(self) -> list[str]:
        return [program("mosquitto"), "-c", str(self._config)]


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployed]:
    with Deployed() as broker:
        yield broker


@pytest.fixture(scope="module")
def guarded(deployed: Deployed, mariadb: MariaDb) -> Iterator[Bridge]:
    """A bridge on it; that it becomes ready is the first thing that must work."""
    with Bridge(
        deployed,
        mariadb,
        MQTT_USERNAME="bridge",
        MQTT_PASSWORD=password("bridge"),
        MQTT_SHARE=SHARE,
        MQTT_INSTANCE=INSTANCE,
    ) as process:
        yield process


class Connect(Protocol):
    async def __call__(self, user: str, **options: Any) -> Requester: ...


@pytest.fixture
async def connect(deployed: Deployed, guarded: Bridge) -> AsyncIterator[Connect]:
    """Logs users in."""
    async with AsyncExitStack() as connections:

        async def log_in(user: str, **options: Any) -> Requester:
            requester = Requester(deployed, username=user, password=password(user), **options)
            return await connections.enter_async_context(requester)

        yield log_in


@pytest.fixture
async def board_a(deployed: Deployed, guarded: Bridge) -> AsyncIterator[Board]:
    async with Board(deployed, BOARD_A, username=BOARD_A, password=password(BOARD_A)) as board:
        yield board


async def ask(plugin: Requester, name: str, operation: str, fields: Any, **options: Any) -> Reply:
    return await plugin.ask(operation, fields, client_level=name, **options)


async def check_that_only_this_light_was_switched(plugin: Requester, board: Board) -> None:
    """Nothing reached the board so far: the next command, of plugin-a's, is its first."""
    assert (await ask(plugin, "plugin-a", "control", LIGHT)).code == 200
    assert (await board.next_command()).json == LIGHT_COMMAND
    assert len(board.commands) == 1


# ---- what must work -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_plugin_asks_under_its_name_and_hears_its_reply(connect, version):
    plugin = await connect("plugin-a", version=version)
    assert (await ask(plugin, "plugin-a", "sensor-data", READING)).code == 200
    default = await ask(plugin, "plugin-a", "sensor-data", READING, response_topic=ABSENT)
    assert default.code == 200
    if version == "5":
        assert default.topic == "plugin/reply/plugin-a/sensor-data"


@pytest.mark.parametrize("operation", OPERATION_NAMES)
async def test_plugin_may_ask_for_every_operation_there_is(connect, operation):
    plugin = await connect("plugin-b")
    fields = {**READING, "requests": [{"operation": "device", **READING}]}
    reply = await ask(plugin, "plugin-b", operation, fields)
    # That it lacks some fields, or may list no devices, is the bridge's word, not the broker's.
    assert reply.code in (200, 422) or "DEVICE_LIST" in reply.body["detail"]


async def test_plugin_switches_a_light_and_the_board_hears_it(connect, board_a):
    await check_that_only_this_light_was_switched(await connect("plugin-a"), board_a)


async def test_plugin_sees_that_the_bridge_is_there(connect):
    plugin = await connect("plugin-b")
    await plugin.subscribe("plugin/status/+")
    presence = await plugin.next_message()
    assert (presence.topic, presence.json["status"]) == (f"plugin/status/{INSTANCE}", "online")


@pytest.mark.parametrize("kind", ["data", "status", "heartbeat"])
async def test_platform_hears_what_a_board_reports(connect, board_a, kind):
    platform = await connect("platform")
    await platform.subscribe(f"devices/+/{kind}")
    assert await board_a.publish(f"devices/{BOARD_A}/{kind}", b'{"temperature":21}') == 0
    assert (await platform.next_message()).topic == f"devices/{BOARD_A}/{kind}"


def test_doctor_finds_nothing_wrong_with_the_broker(deployed, guarded, mariadb):
    doctor = Bridge(deployed, mariadb, "doctor", **{
        **guarded.settings, "MQTT_INSTANCE": "bridge-of-the-doctor", "SERVICE_PORT": None,
        "LANGUAGE": "en",
    })  # fmt: skip
    settings = {**doctor.environment(), "SERVICE_PORT": str(doctor.port)}
    try:
        done = subprocess.run(
            doctor.command(),
            cwd=doctor.folder,
            env=settings,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        doctor.close()
    assert done.returncode == 0, done.stdout
    assert "requests arrive" in done.stdout


# ---- what nobody may say ------------------------------------------------------------------------

MAY_NOT_PUBLISH = {
    "ask as another plugin": ("plugin-a", "plugin/request/control/plugin-b"),
    "ask as the bridge": ("plugin-a", "plugin/request/control/bridge"),
    "ask without a name": ("plugin-a", "plugin/request/control"),
    "ask below its own name": ("plugin-a", "plugin/request/control/plugin-a/x"),
    # A retained message each, they would fill the broker's memory.
    "ask for what is no operation": ("plugin-a", "plugin/request/anything/plugin-a"),
    "ask for what only begins like one": ("plugin-a", "plugin/request/control-1/plugin-a"),
    "command a device": ("plugin-a", f"devices/{BOARD_A}/control"),
    "report for a device": ("plugin-a", f"devices/{BOARD_A}/data"),
    "answer another plugin": ("plugin-a", "plugin/reply/plugin-b/control"),
    "answer itself": ("plugin-a", "plugin/reply/plugin-a/control"),
    "answer by default": ("plugin-a", "plugin/reply/control"),
    "play a bridge's presence": ("plugin-a", f"plugin/status/{INSTANCE}"),
    "write to $SYS": ("plugin-a", "$SYS/broker/version"),
    "board asks": (BOARD_A, f"plugin/request/control/{BOARD_A}"),
    "board asks as a plugin": (BOARD_A, "plugin/request/control/plugin-a"),
    "board commands itself": (BOARD_A, f"devices/{BOARD_A}/control"),
    "board commands another": (BOARD_A, f"devices/{BOARD_B}/control"),
    "board reports for another": (BOARD_A, f"devices/{BOARD_B}/data"),
    "platform commands": ("platform", f"devices/{BOARD_A}/control"),
    "platform asks": ("platform", "plugin/request/control/platform"),
    "bridge reports for a device": ("bridge", f"devices/{BOARD_A}/data"),
    "bridge asks to command": ("bridge", "plugin/request/control/bridge"),
}


@pytest.mark.parametrize("retain", [False, True], ids=["live", "retained"])
@pytest.mark.parametrize(("user", "topic"), MAY_NOT_PUBLISH.values(), ids=MAY_NOT_PUBLISH)
async def test_broker_refuses_what_a_user_may_not_say(connect, user, topic, retain):
    someone = await connect(user)
    assert await someone.publish(topic, json.dumps(LIGHT), retain=retain) == NOT_AUTHORIZED


@pytest.mark.parametrize("credentials", [{}, {"username": "plugin-a", "password": "wrong"}])
async def test_nobody_gets_in_without_a_login_of_theirs(deployed, credentials):
    with pytest.raises(RefusedError) as refusal:
        await Requester(deployed, reconnect=False, **credentials).connect()
    assert refusal.value.code in BAD_LOGIN


async def test_last_will_is_not_spoken_where_its_owner_may_not(connect, deployed, board_a):
    plugin = Requester(
        deployed,
        username="plugin-b",
        password=password("plugin-b"),
        client_id="with-a-will",
        reconnect=False,
    )
    plugin._client.will_set(f"devices/{BOARD_A}/control", b'{"cmd":"led"}', 1)
    await plugin.connect()
    await plugin.drop()
    deployed.wait_for_line("Client with-a-will closed its connection")
    await check_that_only_this_light_was_switched(await connect("plugin-a"), board_a)


ELSEWHERE = {
    "another plugin's": "plugin/reply/plugin-b/x",
    "a name that begins like its own": "plugin/reply/plugin-a2/x",
    "the default replies": "plugin/reply/control",
    "a device's commands": f"devices/{BOARD_A}/control",
    "a request topic": "plugin/request/control/plugin-b",
    "a presence": f"plugin/status/{INSTANCE}",
    "$SYS": "$SYS/broker/version",
    "a wildcard": "plugin/reply/plugin-a/#",
}


@pytest.mark.parametrize("way", ["response topic", "reply_to"])
@pytest.mark.parametrize("topic", ELSEWHERE.values(), ids=ELSEWHERE)
async def test_bridge_is_not_made_to_speak_where_the_plugin_may_not(connect, board_a, topic, way):
    """The bridge itself may publish there: that it does not is its own doing."""
    plugin, other = await connect("plugin-a"), await connect("plugin-b")
    await other.subscribe(ELSEWHERE["another plugin's"])
    await plugin.subscribe("plugin/reply/plugin-a/#")
    asked = LIGHT if way == "response topic" else {**LIGHT, "reply_to": topic}
    await plugin.publish(
        "plugin/request/control/plugin-a",
        json.dumps(asked),
        response_topic=topic.encode() if way == "response topic" else None,
    )
    refusal = await plugin.next_message()
    assert refusal.topic == "plugin/reply/plugin-a/control"
    assert refusal.json["error"] == "reply_topic_forbidden"
    await check_that_only_this_light_was_switched(plugin, board_a)
    # After a reply of its own, sent later than any of those would have been.
    assert (await ask(other, "plugin-b", "health", {})).code == 200
    assert other.messages == []


async def test_retained_request_switches_nothing_and_is_not_repeated(connect, board_a):
    plugin = await connect("plugin-a")
    topic = "plugin/request/control/plugin-a"
    try:
        assert await plugin.publish(topic, json.dumps(LIGHT), retain=True) == 0
        await check_that_only_this_light_was_switched(plugin, board_a)
    finally:
        await plugin.publish(topic, b"", retain=True)


# ---- what the pages advise ----------------------------------------------------------------------

ADVICE = ("docs/plugin-authors.md", "docs/plugin-authors.zh-CN.md")
BLOCKS = {page: {"acl"} for page in ADVICE}


@pytest.mark.parametrize("page", ADVICE)
def test_page_advises_the_lines_that_are_shipped(page):
    text = (PROJECT / page).read_text(encoding="utf-8")
    (advised,) = re.findall(r"<!-- snippet: acl -->\n```text\n(.*?)```", text, re.DOTALL)
    assert set(advised.splitlines()) <= set((DEPLOYED / "acl").read_text().splitlines())


def test_no_page_lets_a_login_publish_to_any_operation():
    """Mosquitto would keep a retained message for each name that somebody made up."""
    pages = [*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), *PROJECT.glob("deploy/**/*")]
    wild = re.compile(r"^[^#\n]*\bwrite\s+plugin/request/\+", re.MULTILINE)
    texts = {page: page.read_text(encoding="utf-8") for page in pages if page.is_file()}
    assert [page.name for page, text in texts.items() if wild.search(text)] == []


# ---- what nobody may fill -----------------------------------------------------------------------

QUEUE_BYTES = 64 * 1024 * 1024
LARGE = bytes(4_000_000)


async def test_session_that_is_away_takes_no_more_of_the_brokers_memory_than_its_share(
    connect, board_a
):
    session = {"client_id": "away", "clean_start": False}
    topic = f"devices/{BOARD_A}/data"
    away = await connect("platform", **session, session_expiry=60)
    await away.subscribe("devices/+/data")
    await away.disconnect()
    sent = QUEUE_BYTES // len(LARGE) + 5
    for _ in range(sent):
        assert await board_a.publish(topic, LARGE) == 0
    back = await connect("platform", **session)
    # The one that passes the limit is still taken.
    for _ in range(QUEUE_BYTES // len(LARGE) + 1):
        assert len((await back.next_message()).payload) == len(LARGE)
    assert await board_a.publish(topic, b"next") == 0
    assert (await back.next_message()).payload == b"next"


def test_clients_are_told_how_much_they_may_leave_unacknowledged_and_how_large(deployed):
    told: list[Properties] = []
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.username_pw_set("bridge", password("bridge"))
    client.on_connect = lambda _c, _u, _f, _r, properties: told.append(properties)
    client.connect(deployed.host, deployed.port)
    while not told:
        assert client.loop(5) == paho.MQTT_ERR_SUCCESS
    client.disconnect()
    client.loop(1)
    (properties,) = told
    assert (properties.ReceiveMaximum, properties.MaximumPacketSize) == (1000, 4 * 1024 * 1024)


# ---- what nobody may hear -----------------------------------------------------------------------

FILTERS = (
    "#",
    "+/#",
    "plugin/#",
    "plugin/request/#",
    "plugin/reply/#",
    "plugin/reply/+",
    "plugin/reply/+/#",
    "plugin/reply/plugin-b/#",
    "plugin/reply/plugin-a/../plugin-b/#",
    "plugin/status/#",
    "devices/#",
    "devices/+/control",
    f"devices/{BOARD_A}/control",
    f"devices/{BOARD_A}/data",
    "$SYS/#",
    "$SYS/broker/clients/+",
    "$share/spies/#",
    "$share/spies/plugin/reply/plugin-b/#",
    "$share/spies/devices/+/control",
    # As the bridge's is called by default. That a thief takes no request of this one is what
    # MQTT_SHARE is set for: Mosquitto would let him in, and lose what fell to him.
    "$share/bridge/plugin/request/+",
    "$share/bridge/plugin/request/+/+",
    "$share/+/plugin/request/+/+",
)

# Beside the replies to themselves.
MAY_HEAR = {
    "plugin-a": ("plugin/status/",),
    "platform": (f"devices/{BOARD_A}/data",),
    BOARD_B: (),
    "bridge": ("plugin/request/", "plugin/status/"),
}


@pytest.mark.parametrize("user", MAY_HEAR)
async def test_spy_hears_only_what_is_meant_for_it(connect, board_a, user):
    spy = await connect(user)
    for topic_filter in FILTERS:
        # Mosquitto refuses some, and of the others delivers what may be read.
        await spy.subscribe(topic_filter)
    plugin = await connect("plugin-b")
    assert (await ask(plugin, "plugin-b", "sensor-data", READING)).code == 200
    assert (
        await ask(plugin, "plugin-b", "sensor-data", READING, response_topic=ABSENT)
    ).code == 200
    assert (await ask(plugin, "plugin-b", "control", LIGHT)).code == 200
    await board_a.next_command()
    await board_a.publish(f"devices/{BOARD_A}/data", b'{"temperature":21}')
    # What the broker has handed on before, it has sent before it closes the connection.
    await spy.disconnect()
    allowed = (*MAY_HEAR[user], f"plugin/reply/{user}/")
    assert [one.topic for one in spy.messages if not one.topic.startswith(allowed)] == []


async def test_thief_of_shared_requests_takes_none(connect):
    thief, plugin = await connect("plugin-b"), await connect("plugin-a")
    for topic_filter in FILTERS:
        if topic_filter.startswith("$share/"):
            await thief.subscribe(topic_filter)
    replies = [await ask(plugin, "plugin-a", "health", {}) for _ in range(20)]
    assert [reply.code for reply in replies] == [200] * 20


async def test_whole_bridge_still_works_after_all_of_that(connect, guarded, board_a):
    await check_that_only_this_light_was_switched(await connect("plugin-a"), board_a)
    assert guarded.output.count("mqtt connected") == 1
