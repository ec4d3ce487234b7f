"""Who gets in, what they may do, and what nobody ever learns: keys, TLS, logs, hostile input.

The broker's side of it is in `test_broker_acl.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web

from bridge.errors import Forbidden, Unauthorized
from bridge.http.answer import Answer
from bridge.http.authentication import Keys
from bridge.http.server import Server
from bridge.settings import Settings, SettingsError
from tests.lab.bridge import Bridge
from tests.lab.certificates import Certificates
from tests.lab.mariadb import MariaDb
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import BOARD_A, BOARD_B, ORDINARY_PRESET, SECRET_PREFIX
from tests.lab.requester import Requester
from tests.lab.servers import LOOPBACK, free_port

ADMIN, READER, TEACHER = "admin-5ecret", "reader-5ecret", "teacher-5ecret"
KEYS_FILE = f"""\
# name:secret  limits

reader:{READER} operations=sensor-data,device
\tteacher:{TEACHER}   devices={BOARD_A},{BOARD_B.upper()}   operations=control,batch,preset
"""

READING = {"device_uuid": BOARD_A, "sensor": "温度"}
LIGHT = {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on"}
ELSEWHERE = "127.0.0.2"


def keys_of(path: Path | None = None, **chosen: Any) -> Keys:
    """The keys of these settings, and of a file with this text."""
    if path is not None:
        chosen["api_keys_file"] = path
    return Keys(Settings(**{"language": "en", **chosen}))


@pytest.fixture
def keys_file(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "keys"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(0o600)
        return path

    return write


# ---- the file of keys ---------------------------------------------------------------------------


def test_file_names_keys_and_their_limits(keys_file):
    keys = keys_of(keys_file(KEYS_FILE), api_keys=f"admin:{ADMIN}")
    admin, reader, teacher = (keys.admit(secret, None) for secret in (ADMIN, READER, TEACHER))
    assert (admin.name, admin.operations, admin.devices) == ("admin", None, None)
    assert (reader.name, reader.devices) == ("reader", None)
    reader.check("sensor-data", BOARD_B)
    with pytest.raises(Forbidden):
        reader.check("control", BOARD_A)
    teacher.check("control", BOARD_B)
    with pytest.raises(Forbidden):
        teacher.check("control", "another")


@pytest.mark.parametrize(
    "text",
    [
        KEYS_FILE.replace("\n", "\r\n"),
        "\ufeff" + KEYS_FILE,
        KEYS_FILE.rstrip("\n"),
        "\n\n# comment: not a key\n  # nor this one\n" + KEYS_FILE,
    ],
    ids=["Windows' line ends", "a byte order mark", "no last line end", "blanks and comments"],
)
def test_file_is_read_as_editors_leave_it(keys_file, text):
    keys = keys_of(keys_file(text))
    assert [keys.admit(secret, None).name for secret in (READER, TEACHER)] == ["reader", "teacher"]


def test_secret_may_hold_a_colon_a_hash_and_chinese(keys_file):
    keys = keys_of(keys_file("a:x:y#z\nb:密钥"))
    assert [keys.admit(secret, None).name for secret in ("x:y#z", "密钥")] == ["a", "b"]


def test_line_of_the_file_limits_a_key_of_the_setting(keys_file):
    keys = keys_of(keys_file(KEYS_FILE), api_keys=f"reader:{READER}")
    with pytest.raises(Forbidden):
        keys.admit(READER, None).check("control", BOARD_A)


SECRET = "never-5een"

BAD_FILES = {
    "no colon": (f"\n{SECRET}\n", "line 2"),
    "no secret": ("a:\n", "line 1"),
    "a space in the name": (f"a b:{SECRET}\n", "line 1"),
    "a space in the secret": (f"a:x {SECRET}\n", "line 1"),
    "an unknown limit": (f"a:{SECRET} topics=x\n", "line 1"),
    "a limit that names nothing": (f"a:{SECRET} devices=\n", "line 1"),
    "a limit twice": (f"a:{SECRET} devices=x devices=y\n", "line 1"),
    "a name twice": (f"a:{SECRET}\n#\na:{SECRET}2\n", "line 3"),
    "a secret twice": (f"a:{SECRET}\nb:{SECRET} devices=x\n", "line 2"),
    "two keys on a line": (f"a:{SECRET},b:{SECRET}2\n", "line 1"),
    "no key at all": ("# a:b\n\n", "holds no key"),
    "nothing": ("", "holds no key"),
    "no text": (b"a:\xff\xfe\n", "can't be read"),
}


@pytest.mark.parametrize(("text", "told"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_file_is_told_by_its_line_and_without_secrets(keys_file, text, told):
    with pytest.raises(SettingsError) as refusal:
        keys_of(keys_file(text))
    words = str(refusal.value)
    assert words.startswith("API_KEYS_FILE: ")
    assert told in words
    assert SECRET not in words
    assert "\n" not in words


def test_name_with_one_secret_here_and_another_there_is_refused(keys_file):
    with pytest.raises(SettingsError, match="API_KEYS"):
        keys_of(keys_file("admin:other\n"), api_keys=f"admin:{ADMIN}")


@pytest.mark.parametrize("text", ["broken", ""])
def test_bad_file_read_again_leaves_the_old_keys_in_force(keys_file, text):
    keys = keys_of(keys_file(KEYS_FILE))
    keys_file(text)
    with pytest.raises(SettingsError):
        keys.load()
    assert keys.admit(READER, None).name == "reader"
    assert keys.required


def test_file_that_an_editor_has_emptied_lifts_no_limit(keys_file):
    """Though a key of the setting would stay, and with the file's word of it gone might do all."""
    keys = keys_of(keys_file(KEYS_FILE), api_keys=f"reader:{READER},admin:{ADMIN}")
    keys_file("")
    with pytest.raises(SettingsError, match="holds no key"):
        keys.load()
    with pytest.raises(Forbidden):
        keys.admit(READER, None).check("control", BOARD_A)
    assert keys.admit(TEACHER, None).name == "teacher"


@pytest.mark.parametrize("text", ["", "# reader:commented out\n"])
def test_file_without_a_key_is_refused_whatever_the_setting_has(keys_file, text):
    with pytest.raises(SettingsError, match="holds no key"):
        keys_of(keys_file(text), api_keys=f"admin:{ADMIN}")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_regular_file_stops_the_start_instead_of_being_waited_for(tmp_path, kind):
    path = Path("/dev/null") if kind == "device" else tmp_path / "keys"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    with closing(
        Bridge(None, None, API_KEYS_FILE=str(path), API_KEYS="a:b", LANGUAGE="en")
    ) as site:
        site.spawn()
        assert site.wait(timeout=10) == 2
        (line,) = site.output.splitlines()
    assert "API_KEYS_FILE: this is not a regular file" in line


def test_file_that_has_gone_leaves_the_old_keys_in_force(keys_file):
    path = keys_file(KEYS_FILE)
    keys = keys_of(path)
    path.unlink()
    with pytest.raises(SettingsError, match="API_KEYS_FILE"):
        keys.load()
    assert keys.admit(READER, None).name == "reader"


def test_file_read_again_replaces_all_keys(keys_file):
    keys = keys_of(keys_file(KEYS_FILE))
    keys_file("new:new-5ecret\n")
    keys.load()
    assert keys.admit("new-5ecret", None).name == "new"
    with pytest.raises(Unauthorized):
        keys.admit(READER, None)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_file_that_everyone_may_read_is_warned_of(keys_file, caplog, mode, warned):
    path = keys_file(KEYS_FILE)
    path.chmod(mode)
    keys_of(path)
    assert ("API_KEYS_FILE" in caplog.text) is warned


# ---- addresses that need no key -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("trusted", "address", "admitted"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.0.0.5", "10.0.0.5", True),
        ("10.0.0.5", "10.0.0.6", False),
        # Bits beyond the mask, as people write the address of their machine.
        ("192.168.1.77/24", "192.168.1.5", True),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("::ffff:10.0.0.0/104", "10.1.2.3", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.0/104", "11.1.2.3", False),
        ("fd00::/8", "fd00::1%eth0", True),
        ("fd00::/8", "fe80::1", False),
        (" 10.0.0.1 , fd00::1 ,", "fd00::1", True),
        ("::1", "127.0.0.1", False),
        ("10.0.0.0/8", "no address", False),
        ("10.0.0.0/8", None, False),
    ],
)
def test_trusted_address_needs_no_key(trusted, address, admitted):
    keys = keys_of(api_keys=f"a:{ADMIN}", api_trusted=trusted)
    if admitted:
        assert keys.admit(None, address) is None
        # What else it sends does not shut it out.
        assert keys.admit("meant for another service", address) is None
        assert keys.admit(ADMIN, address).name == "a"
    else:
        for secret in (None, "wrong"):
            with pytest.raises(Unauthorized):
                keys.admit(secret, address)


@pytest.mark.parametrize("wrong", ["10.0.0.0/33", "localhost", "10.0.0", "fd00::/129", "1.2.3.4/x"])
def test_network_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="nor a network"):
        keys_of(api_trusted=wrong)


# ---- over HTTP ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(
    mosquitto: Mosquitto, mariadb: MariaDb, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bridge]:
    """A bridge with keys, on servers shared with others; who comes from `ELSEWHERE` needs none."""
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(KEYS_FILE)
    path.chmod(0o600)
    with Bridge(
        mosquitto,
        mariadb,
        MQTT_SHARE="guarded",
        API_KEYS=f"admin:{ADMIN}",
        API_KEYS_FILE=str(path),
        API_TRUSTED=ELSEWHERE,
    ) as process:
        yield process


@pytest.fixture
async def session(guarded: Bridge) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(guarded.url) as one:
        yield one


GUARDED = [
    ("GET", "/api/sensor-data"), ("POST", "/api/control"), ("POST", "/api/preset"),
    ("POST", "/api/batch"), ("GET", f"/api/devices/{BOARD_A}"),
    ("GET", f"/api/devices/{BOARD_A}/config"), ("GET", "/api/operations"), ("GET", "/metrics"),
    ("GET", "/openapi.json"), ("GET", "/openapi-3.0.json"), ("GET", "/asyncapi.json"),
    ("GET", "/console/events"), ("GET", "/no/such/path"), ("HEAD", "/api/sensor-data"),
]  # fmt: skip
OPEN = ["/", "/livez", "/readyz", "/health"]


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "wrong"}], ids=["no key", "a wrong key"])
@pytest.mark.parametrize(("method", "path"), GUARDED)
async def test_place_is_closed_without_a_key(session, method, path, headers):
    async with session.request(method, path, headers=headers) as refusal:
        assert refusal.status == 401
        assert refusal.headers["WWW-Authenticate"] == "Bearer"
        if method != "HEAD":
            body = await refusal.json()
            assert (body["code"], body["error"], body["data"]) == (401, "unauthorized", None)
            assert "X-API-Key" in body["detail"]


@pytest.mark.parametrize("path", OPEN)
async def test_place_is_open_to_all(session, path):
    async with session.get(path, headers={"X-API-Key": "wrong"}) as answer:
        assert answer.status == 200


async def test_address_that_is_trusted_needs_no_key(guarded):
    connector = aiohttp.TCPConnector(local_addr=(ELSEWHERE, 0))
    async with (
        aiohttp.ClientSession(guarded.url, connector=connector) as trusted,
        trusted.get("/api/sensor-data", params=READING) as answer,
    ):
        assert answer.status == 200


async def test_address_can_not_be_claimed_by_a_header(session):
    claims = {"X-Forwarded-For": ELSEWHERE, "X-Real-IP": ELSEWHERE, "Forwarded": f"for={ELSEWHERE}"}
    async with session.get("/api/sensor-data", params=READING, headers=claims) as refusal:
        assert refusal.status == 401


SHOWN: dict[str, tuple[list[tuple[str, str]], int]] = {
    "X-API-Key": ([("X-API-Key", ADMIN)], 200),
    "bearer": ([("Authorization", f"Bearer {ADMIN}")], 200),
    "bearer, oddly written": ([("authorization", f"bEARER   {ADMIN} ")], 200),
    "X-API-Key beside another's bearer": (
        [("X-API-Key", ADMIN), ("Authorization", "Bearer of-the-proxy")],
        200,
    ),
    "X-API-Key beside basic": ([("X-API-Key", ADMIN), ("Authorization", "Basic eDp5")], 200),
    "a wrong X-API-Key beside a right bearer": (
        [("X-API-Key", "wrong"), ("Authorization", f"Bearer {ADMIN}")],
        401,
    ),
    "X-API-Key twice": ([("X-API-Key", ADMIN), ("X-API-Key", "wrong")], 401),
    "bearer twice": (
        [("Authorization", f"Bearer {ADMIN}"), ("Authorization", "Bearer wrong")],
        401,
    ),
    "basic": ([("Authorization", f"Basic {ADMIN}")], 401),
    "no scheme": ([("Authorization", ADMIN)], 401),
    "empty": ([("X-API-Key", "")], 401),
    "the name": ([("X-API-Key", "admin")], 401),
    "name and secret": ([("X-API-Key", f"admin:{ADMIN}")], 401),
    "part of it": ([("X-API-Key", ADMIN[:-1])], 401),
    "more than it": ([("X-API-Key", ADMIN + "x")], 401),
    "in another case": ([("X-API-Key", ADMIN.upper())], 401),
    "no UTF-8": ([("X-API-Key", "\udcff\udcfe")], 401),
}


@pytest.mark.parametrize(("headers", "status"), SHOWN.values(), ids=SHOWN)
async def test_key_counts_as_it_is_shown(guarded, headers, status):
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    reply = await exchange(guarded, f"GET /api/operations HTTP/1.1\r\nHost: x\r\n{lines}")
    assert reply.startswith(f"HTTP/1.1 {status} ".encode())


async def test_key_in_the_query_is_none(session):
    async with session.get("/api/operations", params={"api_key": ADMIN}) as refusal:
        assert refusal.status == 401


async def exchange(bridge: Bridge, head: str, body: bytes = b"") -> bytes:
    """All that the bridge says to these bytes."""
    reader, writer = await asyncio.open_connection(bridge.host, bridge.port)
    head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode("utf-8", "surrogateescape") + body)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


PRESET = {"device_uuid": BOARD_A, "preset_key": ORDINARY_PRESET}

LIMITED: list[tuple[str, str, str, dict[str, str], int]] = [
    (READER, "GET", "/api/sensor-data", READING, 200),
    (READER, "GET", f"/api/devices/{BOARD_B}", {}, 200),
    # Reading a device's configuration is part of describing it.
    (READER, "GET", f"/api/devices/{BOARD_B}/config", {}, 200),
    (READER, "POST", "/api/control", LIGHT, 403),
    (READER, "POST", "/api/preset", PRESET, 403),
    (READER, "GET", "/api/operations", {}, 200),
    (TEACHER, "POST", "/api/preset", {**PRESET, "preset_key": "no-such"}, 404),
    (TEACHER, "POST", "/api/preset", {**PRESET, "device_uuid": BOARD_B}, 404),
    (TEACHER, "POST", "/api/preset", {**PRESET, "device_uuid": BOARD_A.upper()}, 409),
    (TEACHER, "POST", "/api/preset", {**PRESET, "device_uuid": "another"}, 403),
    (TEACHER, "GET", "/api/sensor-data", READING, 403),
    (TEACHER, "GET", f"/api/devices/{BOARD_A}", {}, 403),
    (TEACHER, "GET", f"/api/devices/{BOARD_A}/config", {}, 403),
]


@pytest.mark.parametrize(("secret", "method", "path", "fields", "status"), LIMITED)
async def test_key_does_what_it_may_and_no_more(session, secret, method, path, fields, status):
    sent = {"params": fields} if method == "GET" else {"json": fields}
    async with session.request(method, path, headers={"X-API-Key": secret}, **sent) as answer:
        body = await answer.json()
    assert answer.status == status
    assert (body.get("error") == "forbidden") is (status == 403)


async def test_limits_hold_inside_a_batch(session):
    items = [
        {"operation": "sensor-data", **READING},
        {"operation": "control", **LIGHT},
        {"operation": "control", **LIGHT, "device_uuid": "another"},
        {"operation": "device", "device_uuid": BOARD_A},
    ]
    codes = {}
    for secret in (READER, TEACHER):
        async with session.post(
            "/api/batch", json={"requests": items}, headers={"X-API-Key": secret}
        ) as answer:
            results = (await answer.json())["data"]["results"]
        codes[secret] = [(one["code"], one.get("error")) for one in results]
    forbidden = (403, "forbidden")
    assert codes == {
        READER: [(200, None), forbidden, forbidden, (200, None)],
        # Nobody is that device: it may, and is told so.
        TEACHER: [forbidden, (409, "device_unreachable"), forbidden, forbidden],
    }


async def test_hangup_takes_new_keys_up_and_keeps_the_old_ones_over_a_bad_file(
    private_bridge, keys_file
):
    path = keys_file(KEYS_FILE)
    site = private_bridge(API_KEYS_FILE=str(path), LANGUAGE="en")

    async def status(secret: str) -> int:
        async with (
            aiohttp.ClientSession(site.url) as session,
            session.get("/api/operations", headers={"X-API-Key": secret}) as answer,
        ):
            return answer.status

    keys_file("new:new-5ecret\n")
    assert await status(READER) == 200
    site.send_signal(signal.SIGHUP)
    await asyncio.to_thread(site.wait_for_line, "API keys were read again")
    assert [await status(secret) for secret in (READER, "new-5ecret")] == [401, 200]
    keys_file("broken")
    site.send_signal(signal.SIGHUP)
    line = await asyncio.to_thread(site.wait_for_line, "API keys were not read again")
    assert "API_KEYS_FILE: line 1" in line
    assert await status("new-5ecret") == 200


@pytest.mark.parametrize("workers", ["1", "2"])
def test_bad_file_stops_the_start_with_one_line(keys_file, workers):
    with closing(
        Bridge(
            None, None, API_KEYS_FILE=str(keys_file("a:b\nbad\n")), WORKERS=workers, LANGUAGE="en"
        )
    ) as b:
        b.spawn()
        assert b.wait() == 2
        (line,) = b.output.splitlines()
    assert "API_KEYS_FILE: line 2" in line


@contextlib.contextmanager
def closing(bridge: Bridge) -> Iterator[Bridge]:
    try:
        yield bridge
    finally:
        bridge.close()


# ---- TLS ----------------------------------------------------------------------------------------


def test_bridge_serves_over_tls_on_both_sides(private_bridge, private_mosquitto, private_mariadb,
                                              certificates):  # fmt: skip
    """With client certificate to the broker; the servers take nothing that is not encrypted."""
    broker = private_mosquitto(certificates=certificates, require_client_certificate=True)
    database = private_mariadb(certificates=certificates, require_tls=True)
    mine = certificates.client("bridge")
    site = private_bridge(
        broker=broker,
        database=database,
        MQTT_TLS_CERT=str(mine.certificate),
        MQTT_TLS_KEY=str(mine.key),
    )
    assert site.ready


@pytest.mark.parametrize("server", ["broker", "database"])
def test_server_that_is_not_trusted_is_told_and_met_when_it_is(
    private_bridge, private_mosquitto, private_mariadb, certificates, tmp_path, server
):
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(Certificates(tmp_path / "others").ca.read_bytes())
    if server == "broker":
        broker = private_mosquitto(certificates=certificates)
        site = private_bridge(broker=broker, wait="live", MQTT_TLS_CA=str(trusted))
    else:
        database = private_mariadb(certificates=certificates)
        site = private_bridge(database=database, wait="live", DB_TLS_CA=str(trusted))
    line = site.wait_for_line(f"{'mqtt' if server == 'broker' else 'database'} unavailable")
    assert re.search(r"(?i)certificate", line)
    assert not site.ready
    # It goes on trying, and reads the file each time.
    trusted.write_bytes(certificates.ca.read_bytes())
    site.wait_until_it_is("ready")


def test_broker_of_another_name_is_refused(private_bridge, private_mosquitto, tmp_path):
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    leaf = authority.issue_cert("broker.example")
    others = Certificates(tmp_path / "lab")
    leaf.cert_chain_pems[0].write_to_path(str(others.server.certificate))
    leaf.private_key_pem.write_to_path(str(others.server.key))
    broker = private_mosquitto(certificates=others)
    site = private_bridge(broker=broker, wait="live", MQTT_TLS_CA=str(ca))
    assert "127.0.0.1" in site.wait_for_line("IP address mismatch")
    assert not site.ready


def test_tls_without_an_authority_trusts_those_of_the_system(
    private_bridge, private_mosquitto, certificates, tmp_path
):
    broker = private_mosquitto(certificates=certificates)
    refused = private_bridge(broker=broker, wait="live", MQTT_TLS_CA=None)
    assert "certificate" in refused.wait_for_line("mqtt unavailable").lower()

    class Trusting(Bridge):
        """On a machine whose store holds our authority."""

        def environment(self):
            return {**super().environment(), "SSL_CERT_FILE": str(certificates.ca)}

    with closing(Trusting(broker, None, MQTT_TLS_CA=None)) as site:
        site.start("live")
        site.wait_for_line("mqtt connected")


@pytest.mark.parametrize("name", ["MQTT_TLS_CA", "MQTT_TLS_CERT", "DB_TLS_CA", "encrypted key"])
def test_file_that_is_no_certificate_stops_the_start_with_one_line(tmp_path, certificates, name):
    file = tmp_path / "file.pem"
    file.write_text("no certificate\n")
    chosen = {name: str(file)}
    if name == "encrypted key":
        mine = certificates.client("locked")
        subprocess.run(
            ["openssl", "pkey", "-aes256", "-passout", "pass:x", "-in", mine.key, "-out", file],
            check=True,
            capture_output=True,
        )
        chosen = {"MQTT_TLS_CERT": str(mine.certificate), "MQTT_TLS_KEY": str(file)}
    with closing(Bridge(None, None, **chosen)) as site:
        site.spawn()
        assert site.wait() == 2
        (line,) = site.output.splitlines()
    assert next(iter(chosen)) in line


def test_key_without_its_certificate_is_refused(certificates):
    with pytest.raises(ValueError, match="MQTT_TLS_CERT"):
        Settings(_env_file=None, mqtt_tls_key=certificates.server.key)


# ---- secrets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_secret_is_in_any_output_or_reply(
    private_bridge, private_mosquitto, mariadb, keys_file, tmp_path, log_format
):
    """With everything logged, good and bad requests, a server lost, and the doctor."""
    mqtt_password, wrong_key = "mqtt-5ecret", "offered-5ecret"
    broker = private_mosquitto(anonymous=False, passwords={"u": mqtt_password})
    (tmp_path / "password").write_text(mqtt_password + "\n")
    site = private_bridge(
        broker=broker,
        LOG_LEVEL="DEBUG",
        LOG_FORMAT=log_format,
        MQTT_USERNAME="u",
        MQTT_PASSWORD_FILE=str(tmp_path / "password"),
        DATABASE_URL=f"mysql://{mariadb.user}:{mariadb.password}@{mariadb.host}:{mariadb.port}/aiot",
        DB_PASSWORD="unused-5ecret",
        API_KEYS=f"admin:{ADMIN}",
        API_KEYS_FILE=str(keys_file(KEYS_FILE)),
    )
    replies = []
    async with aiohttp.ClientSession(site.url) as session:
        for secret in (ADMIN, READER, wrong_key):
            headers = {"Authorization": f"Bearer {secret}"}
            for path in (
                f"/api/devices/{BOARD_A}",
                f"/api/devices/{BOARD_A}/config",
                "/api/sensor-data",
                "/openapi.json",
                "/asyncapi.json",
                "/metrics",
                "/health",
            ):
                async with session.get(path, params=READING, headers=headers) as answer:
                    replies.append(await answer.text())
            for path in ("/api/control", "/api/preset", "/api/batch"):
                body = {**LIGHT, **PRESET, "requests": [{"operation": "device", **LIGHT}]}
                async with session.post(path, json=body, headers=headers) as answer:
                    replies.append(await answer.text())
    async with Requester(broker, username="u", password=mqtt_password) as requester:
        for operation in ("device", "sensor-data", "control", "health", "operations"):
            reply = await requester.ask(operation, {**READING, **LIGHT})
            replies.append(f"{reply.payload!r} {reply.user_property_pairs}")
    await asyncio.to_thread(broker.restart)
    await asyncio.to_thread(site.wait_until_it_is, "ready")
    site.send_signal(signal.SIGHUP)
    await asyncio.to_thread(site.wait_for_line, "read again")
    doctor = await asyncio.to_thread(run_doctor, site, SERVICE_PORT=str(broker.port))
    wrong = await asyncio.to_thread(run_doctor, site, MQTT_PASSWORD="wrong-5ecret")
    await asyncio.to_thread(site.stop)
    told = "\n".join((site.output, doctor, wrong, *replies))
    assert len(site.output.splitlines()) > 20
    assert "admin" in site.output
    secrets = ("5ecret", mariadb.password, SECRET_PREFIX)
    assert [secret for secret in secrets if secret in told] == []


def run_doctor(site: Bridge, **changed: str) -> str:
    done = subprocess.run(
        [*site.command(), "doctor"],
        cwd=site.folder,
        env={**site.environment(), **changed},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr


# ---- the log ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(mariadb: MariaDb, request: pytest.FixtureRequest) -> Iterator[Bridge]:
    """A bridge on its own broker, which tells each request, in the format of the parameter."""
    with (
        Mosquitto() as broker,
        Bridge(
            broker,
            mariadb,
            LOG_LEVEL="DEBUG",
            LOG_FORMAT=request.param,
            API_KEYS=f"admin:{ADMIN}",
            MQTT_REPLY_TOPICS="+",
        ) as process,
    ):
        yield process


as_json = pytest.mark.parametrize("logged", ["json"], indirect=True)
in_both = pytest.mark.parametrize("logged", ["text", "json"], indirect=True)


@as_json
async def test_each_command_is_told_with_who_device_what_and_outcome(logged, board):
    device = await board(BOARD_A, logged.broker)
    async with aiohttp.ClientSession(logged.url) as session:
        for request_id, fields in (
            ("over-http", LIGHT),
            ("to-nobody", {**LIGHT, "device_uuid": BOARD_B}),
            ("in-a-batch", {"requests": [{"operation": "control", **LIGHT}] * 2}),
        ):
            async with session.post(
                "/api/batch" if "requests" in fields else "/api/control",
                json=fields,
                headers={"X-API-Key": ADMIN, "Idempotency-Key": request_id},
            ) as answer:
                await answer.read()
    async with Requester(logged.broker) as requester:
        await requester.ask("control", {**LIGHT, "request_id": "over-mqtt"}, client_level="kim")
        # Under the same id, by a requester of that reply topic: another one, and executed.
        fields = {**LIGHT, "request_id": "over-mqtt"}
        assert (await requester.ask("control", fields, response_topic="kim")).code == 200
        await requester.ask("preset", {**PRESET, "request_id": "a-preset"}, client_level="kim")
        await requester.ask("sensor-data", {**READING, "request_id": "a-reading"})

        # The log is written behind the replies: a later line says that all before it are there.
        await requester.ask("health", {"request_id": "the-last"})
    await asyncio.to_thread(logged.wait_for_line, "the-last")

    def told(line: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(line[key] for key in ("who", "device", "operation", "code", "outcome"))

    events = [json.loads(line) for line in logged.output.splitlines()]
    audit = [one for one in events if one["logger"] == "bridge.commands"]
    assert [told(one) for one in audit] == [
        ("http:admin", BOARD_A, "control", 200, "ok"),
        ("http:admin", BOARD_B, "control", 409, "device_unreachable"),
        ("http:admin", BOARD_A, "control", 200, "ok"),
        ("http:admin", BOARD_A, "control", 200, "ok"),
        ("mqtt:kim", BOARD_A, "control", 200, "ok"),
        ("mqtt-topic:kim", BOARD_A, "control", 200, "ok"),
        ("mqtt:kim", BOARD_A, "preset", 200, "ok"),
    ]
    asked = json.loads(audit[0]["asked"])
    assert (asked["port_type"], asked["port_id"], asked["action"]) == ("led", 1, "on")
    assert audit[4]["id"] == audit[5]["id"] == "over-mqtt"
    await device.next_commands(6)


FORGED = "2026-01-01 00:00:00 CRITICAL forged"
ODD = "k\u2028\u202eim"
HOSTILE = f"x\r\n{FORGED}\x1b[31m\x9b2J\u2028\x00\x7f"


@in_both
async def test_nothing_that_is_sent_forges_or_garbles_a_line(logged):
    async with Requester(logged.broker) as requester:
        hostile = HOSTILE.replace("\x00", "")
        for fields in (
            {**LIGHT, "device_uuid": hostile[:36]},
            {**LIGHT, "action": hostile},
            {**LIGHT, "port_type": None, "port_id": None, "port": hostile},
            {"device_uuid": hostile[:36], "preset_key": hostile, "parameters": {hostile: hostile}},
            {**READING, "sensor": hostile},
        ):
            for operation in ("control", "preset", "sensor-data"):
                await requester.ask(operation, fields)
        # Mosquitto itself lets no control characters pass in topics and properties.
        await requester.subscribe(f"plugin/reply/{ODD}/#")
        await requester.ask("control", LIGHT, client_level=ODD)
        await requester.ask(
            "control", LIGHT, user_properties=dict.fromkeys(("traceparent", "tracestate"), ODD)
        )
    async with aiohttp.ClientSession(logged.url):
        body = json.dumps({**LIGHT, "device_uuid": HOSTILE[:36]}).encode()
        for header in ("traceparent", "tracestate", "Idempotency-Key", "User-Agent", "Origin"):
            for value in ("\udcff\udcfe", "\x9b2J \u2028\u202e", FORGED):
                await exchange(
                    logged,
                    f"POST /api/control HTTP/1.1\r\nHost: x\r\nX-API-Key: {ADMIN}\r\n"
                    f"Content-Type: application/json\r\n{header}: {value}\r\n",
                    body,
                )
        await exchange(logged, f"GET /{FORGED.replace(' ', '%0a')} HTTP/1.1\r\nHost: x\r\n")
    await asyncio.to_thread(logged.stop)
    try:
        check_lines(logged.output)
    finally:
        logged.start()


def check_lines(output: str) -> None:
    lines = output.split("\n")[:-1]
    begins = re.compile(r'\{"time":"20|20\d\d-\d\d-\d\d \d\d:\d\d:\d\d (DEBUG|INFO|WARNING|ERROR) ')
    assert [line for line in lines if not begins.match(line)] == []
    assert not any(line.startswith(FORGED) for line in lines)
    assert re.findall(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e]", output) == []
    assert "Logging error" not in output


# ---- hostile input ------------------------------------------------------------------------------

NESTED = b'{"device_uuid":"x","preset_key":"y","parameters":%s1%s}' % (b'{"a":' * 400, b"}" * 400)

HARD_JSON = {
    "nested deeper than we can repeat": (NESTED, 400, "malformed_request"),
    "a number larger than any": (
        json.dumps({**LIGHT, "port_id": "9" * 30}).encode(), 422, "validation_error"),
    "a number of 5000 digits": (
        json.dumps({**LIGHT, "value": "9" * 5000}).encode(), 422, "validation_error"),
    "a key twice: the last one counts": (
        b'{"device_uuid":"x","action":"explode",' + json.dumps(LIGHT).encode()[1:], 409,
        "device_unreachable"),
    "a time that is no time": (
        json.dumps({**LIGHT, "expires_at": "9" * 5000}).encode(), 422, "validation_error"),
}  # fmt: skip


@pytest.mark.parametrize("transport", ["http", "mqtt"])
@pytest.mark.parametrize(("payload", "code", "error"), HARD_JSON.values(), ids=HARD_JSON)
async def test_hard_json_is_answered_and_never_an_internal_error(
    http, requester, transport, payload, code, error
):
    operation = "preset" if payload is NESTED else "control"
    if transport == "http":
        headers = {"Content-Type": "application/json", "Idempotency-Key": os.urandom(4).hex()}
        async with http.post(f"/api/{operation}", data=payload, headers=headers) as answer:
            body = await answer.json()
    else:
        body = (await requester.ask_raw(f"plugin/request/{operation}", payload)).body
    assert (body["code"], body["error"]) == (code, error)


IDLE = 0.4
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"

SLOW = {
    "nothing": (b"", b""),
    "part of the request line": (b"GET / HT", b""),
    "part of the head": (HEAD, b""),
    "a head that never ends": (HEAD, b"X-More: x\r\n"),
    "another after a good one": (HEAD + b"\r\n" + HEAD, b"X-More: x\r\n"),
}


@pytest.fixture
async def impatient() -> AsyncIterator[int]:
    """The port of a server like ours, but that an idle connection has `IDLE` seconds."""

    async def hello(_request: web.Request) -> web.StreamResponse:
        return Answer(200, "text/plain", b"hello")

    app = web.Application()
    app.router.add_get("/", hello)
    server = Server(
        app,
        on_error=lambda _error: Answer(400, "text/plain", b"bad", keep_alive=False),
        access_log=None,
        keepalive_timeout=IDLE,
    )
    port = free_port()
    await server.start(LOOPBACK, port)
    yield port
    await server.close(within=0.1)


@pytest.mark.parametrize(("first", "drops"), SLOW.values(), ids=SLOW)
async def test_connection_that_completes_no_request_is_closed(impatient, first, drops):
    reader, writer = await asyncio.open_connection(LOOPBACK, impatient)
    writer.write(first)
    started = time.monotonic()

    async def drip() -> None:
        while drops:
            await asyncio.sleep(0.1)
            writer.write(drops)

    dripping = asyncio.create_task(drip())
    with contextlib.suppress(ConnectionError):
        await asyncio.wait_for(reader.read(), 5)
    dripping.cancel()
    writer.close()
    assert IDLE / 2 < time.monotonic() - started < IDLE + 2


LONG_HEADS = {
    "a long request line": b"GET /" + b"a" * 20_000,
    "a long header": HEAD + b"X-Long: " + b"a" * 20_000,
    "many headers": HEAD + b"".join(b"X-%d: x\r\n" % number for number in range(20_000)),
}


@pytest.mark.parametrize("head", LONG_HEADS.values(), ids=LONG_HEADS)
async def test_long_head_is_refused_before_it_ends(bridge, head):
    reader, writer = await asyncio.open_connection(bridge.host, bridge.port)
    writer.write(head)
    reply = b""
    with contextlib.suppress(ConnectionError):
        reply = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert reply == b"" or b"malformed_request" in reply


async def test_idle_connections_by_the_hundred_disturb_nobody(bridge, http):
    async with contextlib.AsyncExitStack() as idle:
        for _ in range(300):
            _, writer = await asyncio.open_connection(bridge.host, bridge.port)
            idle.callback(writer.close)
            writer.write(HEAD)
        started = time.monotonic()
        async with http.get("/api/sensor-data", params=READING) as answer:
            assert answer.status == 200
        assert time.monotonic() - started < 1
