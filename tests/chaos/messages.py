"""Hostile messages: a list that is kept, and strategies for what nobody has thought of.

What once did harm somewhere (a broker that closed the connection, a parser that gave a 500) has
its place in the lists. The strategies make ingredients; a run puts them together at random.
"""

from __future__ import annotations

import gzip
import json
import random
import struct
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.lab.platform import ALIAS, BOARD_A, BOARD_B, ORDINARY_PRESET, READY_PRESET

OPERATIONS = ("sensor-data", "control", "preset", "device", "batch", "health", "operations")


class HostilePublish(NamedTuple):
    """A PUBLISH as it goes on the wire."""

    topic: bytes
    properties: bytes
    payload: bytes
    retain: bool = False


class HostileHttp(NamedTuple):
    """What is sent on one HTTP connection, piece by piece, with a pause between two."""

    pieces: tuple[bytes, ...]


# ---- MQTT: topics -------------------------------------------------------------------------------

TOPICS = (
    *(f"plugin/request/{name}".encode() for name in OPERATIONS),
    *(f"plugin/request/{name}/someone".encode() for name in OPERATIONS),
    b"plugin/request/",
    b"plugin/request//",
    b"plugin/request/nonsense",
    b"plugin/request/config",
    b"plugin/request/__class__",
    b"plugin/request/control/control",
    b"plugin/request/control/$SYS",
    b"plugin/request/control/a b",
    b"plugin/request/\xef\xbb\xbf",
    b"plugin/request/control/\xef\xbb\xbf",
    b"plugin/request/\xf0\x9f\x92\xa5",
    b"plugin/request/" + b"x" * 60_000,
    b"plugin/request/control/" + b"\xe6\xb8\xa9" * 10_000,
    # These cost the sender its connection, or ought to.
    b"plugin/request/+",
    b"plugin/request/#",
    b"plugin/request/\x00",
    b"plugin/request/\x1b[31m",
    b"plugin/request/\xff\xfe",
    b"plugin/request/\xed\xa0\x80",
    b"plugin/request/\xef\xbf\xbf",
    b"",
)

# ---- MQTT: properties ---------------------------------------------------------------------------

RESPONSE_TOPICS = (
    b"",
    b"/",
    b"plugin/reply/me",
    b"plugin/reply/",
    b"plugin/reply//",
    b"plugin/reply/+",
    b"plugin/reply/#",
    b"plugin/reply/a+b",
    b"plugin/reply/a\x00b",
    b"plugin/reply/a\nb",
    b"plugin/reply/\x7f",
    b"plugin/reply/\xc2\x85",
    b"plugin/reply/\xef\xbb\xbf",
    b"plugin/reply/\xef\xbb\xbfa",
    b"plugin/reply/\xef\xb7\x90",
    b"plugin/reply/\xef\xbf\xbe",
    b"plugin/reply/\xf0\x9f\xbf\xbf",
    b"plugin/reply/\xf4\x8f\xbf\xbf",
    b"plugin/reply/\xed\xa0\x80",
    b"plugin/reply/\xff",
    b"plugin/reply/" + b"a" * 243,
    b"plugin/reply/" + b"a" * 244,
    b"plugin/reply/" + b"a" * 60_000,
    b"plugin/reply/" + b"a/" * 300,
    b"plugin/reply/../request/control",
    b"plugin/request/control",
    b"plugin/request/health",
    b"plugin/status/bridge",
    b"plugin/reply",
    b"Plugin/reply/me",
    b"$SYS/broker/uptime",
    b"$share/bridge/plugin/request/+",
    b"$",
    b"#",
    b"+",
    f"devices/{BOARD_A}/control".encode(),
    b"devices/+/control",
)


def _prop(kind: int, value: bytes) -> bytes:
    return bytes((kind,)) + len(value).to_bytes(2, "big") + value


def _user(name: bytes, value: bytes) -> bytes:
    return _prop(0x26, name) + len(value).to_bytes(2, "big") + value


def _expiry(seconds: int) -> bytes:
    return b"\x02" + struct.pack("!I", seconds)


PROPERTIES = (
    b"",
    *(_prop(0x08, topic) for topic in RESPONSE_TOPICS),
    # Correlation Data: none, every byte, as much as there can be.
    _prop(0x09, b""),
    _prop(0x09, bytes(range(256))),
    _prop(0x09, b"\xff" * 65_535),
    _prop(0x09, b"\x00"),
    # Content types and format indicators.
    _prop(0x03, b""),
    _prop(0x03, b"application/json"),
    _prop(0x03, b"application/json; charset=\xef\xbb\xbf"),
    _prop(0x03, b"application/octet-stream"),
    _prop(0x03, b"text/json" + b";" * 60_000),
    _prop(0x03, b"application/" + b"a" * 60_000),
    b"\x01\x00",
    b"\x01\x01",
    b"\x01\x02",
    b"\x01\xff",
    # Expiries.
    _expiry(0),
    _expiry(1),
    _expiry(0xFFFFFFFF),
    # User properties: empty, odd, huge, many; those that we read and those that we write.
    _user(b"", b""),
    _user(b"\xef\xbb\xbf", b"\xef\xbb\xbf"),
    _user(b"\xef\xbf\xbf", b"\xf0\x9f\xbf\xbe"),
    _user(b"name", b"a\x00b"),
    _user(b"name", b"\xff"),
    _user(b"a" * 65_535, b"b" * 65_535),
    _user(b"a", b"b") * 10_000,
    _user(b"", b"") * 200_000,
    _user(b"traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01") * 250,
    _user(b"traceparent", b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01"),
    _user(b"traceparent", b"x" * 10_000),
    _user(b"tracestate", b"\r\nX: y"),
    _user(b"tracestate", b"a=b") * 1000,
    _user(b"__stat", b"200") + _user(b"__ts", b"nonsense") + _user(b"__protVer", b"99.99"),
    # Malformed: these cost the sender its connection, or ought to.
    _prop(0x08, b"plugin/reply/a") * 2,
    _prop(0x09, b"a") + _prop(0x09, b"b"),
    b"\x0b\x00",
    b"\x0b\x01",
    b"\x23\x00\x00",
    b"\x23\xff\xff",
    b"\x7f",
    b"\x26\x00\x01a",
    b"\x08\xff\xffa",
)

# ---- payloads -----------------------------------------------------------------------------------


def _control(**more: Any) -> dict[str, Any]:
    return {"device_uuid": BOARD_A, "port_type": "led", "port_id": 1, "action": "on", **more}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


PAYLOADS = (
    b"",
    b" ",
    b"null",
    b"true",
    b"0",
    b'""',
    b"[]",
    b"{}",
    b"{",
    b'{"a":}',
    b"\x00",
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b"\xef\xbb\xbf" + _json(_control()),
    b"{}\x00",
    b"{}{}",
    b"[" * 100_000,
    b"[" * 60_000 + b"]" * 5_000,
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    b'{"requests":' + b"[" * 1020 + b"]" * 1020 + b"}",
    b'{"device_uuid":NaN}',
    b'{"expires_at":NaN}',
    b'{"expires_at":Infinity}',
    b'{"expires_at":-Infinity}',
    b'{"expires_at":1e400}',
    b'{"expires_at":"nan"}',
    b'{"expires_at":"1e400"}',
    b'{"expires_at":' + b"9" * 10_000 + b"}",
    b'{"expires_at":"' + b"9" * 10_000 + b'"}',
    b'{"expires_at":-1}',
    b'{"expires_at":0.0000001}',
    b'{"expires_at":[]}',
    b'{"device_uuid":"\\ud800","sensor":"\\udfff"}',
    b'{"device_uuid":"\xed\xa0\x80","sensor":"rain"}',
    b'{"device_uuid":"a\\u0000b","sensor":"rain"}',
    b'{"device_uuid":"' + BOARD_A.encode() + b'","device_uuid":"x","sensor":"rain"}',
    b'{"request_id":"a","request_id":"b"}',
    b'{"__proto__":{"a":1},"constructor":{}}',
    b'{"a":"' + b"x" * 65_600 + b'"}',
    *(
        _json({"request_id": request_id})
        for request_id in ("", " ", "a/b", "#", "温", "a" * 129, 1, None, [], {}, True, 1.5)
    ),
    *(
        _json({"reply_to": reply_to})
        for reply_to in (
            *(topic.decode("utf-8", "replace") for topic in RESPONSE_TOPICS),
            1,
            None,
            [],
            {},
            True,
            "plugin/reply/\ud800",
        )
    ),
    *(
        _json({"device_uuid": uuid, "sensor": "temperature"})
        for uuid in (
            "",
            "'",
            "' OR '1'='1",
            "\\' OR 1=1 -- ",
            "%s",
            "%",
            "_",
            "a/b",
            "+",
            "#",
            "\x00",
            "\n",
            "\ufeff",
            "\uffff",
            "😀" * 18,
            "a" * 37,
            "a" * 60_000,
            BOARD_A.upper(),
            f" {BOARD_A}",
            f"{BOARD_A} ",
            1,
            1.5,
            None,
            [],
            {},
            [BOARD_A],
        )
    ),
    *(
        _json({"device_uuid": BOARD_B, "sensor": sensor})
        for sensor in (
            "",
            "'",
            "温度",
            "溫度",
            "ＴＥＭＰＥＲＡＴＵＲＥ",
            "\u0130",
            "ß",
            "a" * 101,
            1,
            {},
        )
    ),
    *(
        _json(_control(**more))
        for more in (
            {"port_type": "bomb"},
            {"port_type": "pwm", "action": "set", "value": 10**400},
            {"port_type": "pwm", "action": "set", "value": 1e300},
            {"port_type": "pwm", "action": "set", "value": "１２"},
            {"port_type": "pwm", "action": "set", "value": 50, "frequency": 10**18},
            {"port_type": "servo", "action": "set", "value": -1},
            {"port_type": "servo", "action": "set", "value": "9" * 5_000},
            {"port_type": "LED\u0000"},
            {"port_id": "1\n"},
            {"port_id": 2**63},
            {"port_id": -(2**63)},
            {"port_id": 1.0000000001},
            {"port_id": True},
            {"port_id": "٣"},
            {"port": ALIAS},
            {"port": "\ufeff" + ALIAS},
            {"port": "\u0041\u0300" * 50},
            {"port": []},
            {"action": "explode"},
            {"action": "ON\u0000"},
            {"value": {}},
        )
    ),
    *(
        _json({"device_uuid": BOARD_A, "preset_key": key, "parameters": parameters})
        for key in (ORDINARY_PRESET, READY_PRESET, "", "'", "\x00", 1)
        for parameters in (
            None,
            {},
            [],
            "x",
            {"count": 10**30},
            {"count": "1e30"},
            {"count": 1e300},
            {"": ""},
            {"count": {"a": []}},
        )
    ),
    *(
        _json({"requests": requests})
        for requests in (
            None,
            {},
            [],
            [None],
            ["x"],
            [[]],
            [{}] * 100,
            [{}] * 101,
            [{"operation": "batch", "requests": []}],
            [{"operation": ["control"]}],
            [{"operation": None}],
            [{"operation": "control", **_control(request_id="x")}] * 100,
            [{"operation": "sensor-data", "request_id": "#"}],
            [{"operation": "device", "device_uuid": BOARD_A, "expires_at": 1}],
            [{"operation": "preset", "device_uuid": BOARD_A, "preset_key": "x"}],
        )
    ),
)

# ---- HTTP ---------------------------------------------------------------------------------------

_POST = b"POST /api/control HTTP/1.1\r\nHost: b\r\nContent-Type: application/json\r\n"
_GOOD = _json(_control())
_CHUNKED = _POST + b"Transfer-Encoding: chunked\r\n\r\n"
# 50 KB that would be 50 MB.
_BOMB = gzip.compress(bytes(50_000_000), compresslevel=9)


def _posted_as(content_type: bytes, headers: bytes, body: bytes) -> bytes:
    head = b"POST /api/control HTTP/1.1\r\nHost: b\r\nContent-Type: " + content_type + b"\r\n"
    return head + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


def _post(headers: bytes, body: bytes) -> bytes:
    return _POST + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


REQUEST_LINES = (
    b"GET / HTTP/1.1",
    b"get / HTTP/1.1",
    b"GET / HTTP/1.0",
    b"GET / HTTP/0.9",
    b"GET / HTTP/2.0",
    b"GET / HTTP/9.9",
    b"GET / HTTP/1.1 x",
    b"GET /",
    b"GET",
    b"",
    b" ",
    b"\x00",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0",
    b"OPTIONS * HTTP/1.1",
    b"CONNECT b:443 HTTP/1.1",
    b"TRACE / HTTP/1.1",
    b"BREW /api/control HTTP/1.1",
    b"GET http://elsewhere/livez HTTP/1.1",
    b"GET http://xn--0.com/livez HTTP/1.1",
    b"GET //livez HTTP/1.1",
    b"GET /../../etc/passwd HTTP/1.1",
    b"GET /docs/../../../etc/passwd HTTP/1.1",
    b"GET /docs/%2e%2e/%2e%2e/etc/passwd HTTP/1.1",
    b"GET /console/..%2f..%2frun.py HTTP/1.1",
    b"GET /%00 HTTP/1.1",
    b"GET /%ff%fe HTTP/1.1",
    b"GET /%ed%a0%80 HTTP/1.1",
    b"GET /%zz HTTP/1.1",
    b"GET /% HTTP/1.1",
    b"GET /\xe6\xb8\xa9 HTTP/1.1",
    b"GET /\xff HTTP/1.1",
    b"GET /api/devices/%2F HTTP/1.1",
    b"GET /api/devices/%00 HTTP/1.1",
    b"GET /api/devices/%ed%a0%80 HTTP/1.1",
    b"GET /api/devices/%ff/config HTTP/1.1",
    b"GET /api/devices/" + b"a" * 7_000 + b" HTTP/1.1",
    b"GET /api/sensor-data HTTP/1.1",
    b"GET /api/sensor-data? HTTP/1.1",
    b"GET /api/sensor-data?& HTTP/1.1",
    b"GET /api/sensor-data?device_uuid=%ff&sensor=%ed%a0%80 HTTP/1.1",
    b"GET /api/sensor-data?device_uuid=%00&sensor=%0a HTTP/1.1",
    b"GET /api/sensor-data?device_uuid=\xff&sensor=\xed\xa0\x80 HTTP/1.1",
    b"GET /api/sensor-data?device_uuid=a&device_uuid=b&sensor=c HTTP/1.1",
    b"GET /api/sensor-data?device_uuid[]=a&sensor[x]=c HTTP/1.1",
    b"GET /api/sensor-data?request_id=%0d%0aX:%20y&device_uuid=a&sensor=b HTTP/1.1",
    b"GET /api/sensor-data?expires_at=nan&device_uuid=a&sensor=b HTTP/1.1",
    b"GET /api/sensor-data?expires_at=1e999&device_uuid=a&sensor=b HTTP/1.1",
    b"GET /api/sensor-data?" + b"a=b&" * 1_500 + b" HTTP/1.1",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1",
    b"POST /api/sensor-data HTTP/1.1",
    b"GET /api/control HTTP/1.1",
    b"HEAD /api/control HTTP/1.1",
    b"HEAD /metrics HTTP/1.1",
    b"DELETE /metrics HTTP/1.1",
    b"GET /metrics?x=\xff HTTP/1.1",
    b"GET /docs HTTP/1.1",
    b"GET /openapi.json HTTP/1.1",
    b"GET /mcp/ HTTP/1.1",
)

HEADERS = (
    b"",
    b"Host: \r\n",
    b"Host: a\r\nHost: b\r\n",
    b"Host: \xff\r\n",
    b"Host: ]:80[\r\n",
    b"Host: [::1\r\n",
    b"Host: b:99999999\r\n",
    b"X-Forwarded-Proto: \xff\r\n",
    b"X: " + b"y" * 7_000 + b"\r\n",
    b"X: " + b"y" * 100_000 + b"\r\n",
    b"X: y\r\n" * 2_000,
    b"X\r\n",
    b": y\r\n",
    b"X : y\r\n",
    b"X: a\r\n b\r\n",
    b"X: a\x00b\r\n",
    b"X: a\nY: b\r\n",
    b"\xff: y\r\n",
    b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n",
    b"Connection: close, keep-alive\r\n",
    b"Expect: 100-continue\r\n",
    b"Expect: the unexpected\r\n",
    b"Expect: \xff\r\n",
    b"Content-Encoding: gzip\r\n",
    b"Accept-Encoding: \xff\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 1, 2\r\n",
    b"Content-Length: 1\r\nContent-Length: 2\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length: 0x10\r\n",
    b"Content-Length: 10\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Content-Type: \r\n",
    b"Content-Type: application/json; charset=utf-7\r\n",
    b'Content-Type: application/json;;;="\r\n',
    b"Content-Type: application/json\r\nContent-Type: text/plain\r\n",
    b"Idempotency-Key: \r\n",
    b"Idempotency-Key: \xff\r\n",
    b"Idempotency-Key: " + b"a" * 200 + b"\r\n",
    b"Authorization: \r\n",
    b"Authorization: Bearer \xff\r\n",
    b"X-API-Key: \xff\r\n",
    b"Origin: \xff\r\n",
    b"Origin: null\r\n",
    b"traceparent: \xff\r\n",
    b"tracestate: " + b"a" * 600 + b"\r\n",
    b"Cookie: " + b"a=b; " * 1_000 + b"\r\n",
    b"Range: bytes=0-0,1-1,5-2,-1\r\n",
    b"If-Modified-Since: yesterday\r\n",
    b"If-Modified-Since: Mon, 01 Jan 99999999999999999999 00:00:00 GMT\r\n",
    b"If-Unmodified-Since: Mon, 01 Jan 99999999999999999999 00:00:00 GMT\r\n",
    b"If-None-Match: \xff\r\n",
)

KEPT_HTTP = (
    *(HostileHttp((line + b"\r\nHost: b\r\n\r\n",)) for line in REQUEST_LINES),
    *(HostileHttp((b"GET /livez HTTP/1.1\r\nHost: b\r\n" + h + b"\r\n",)) for h in HEADERS),
    *(HostileHttp((b"GET /docs HTTP/1.1\r\nHost: b\r\n" + h + b"\r\n",)) for h in HEADERS),
    *(HostileHttp((_post(h, _GOOD),)) for h in HEADERS),
    *(HostileHttp((_post(b"", payload),)) for payload in PAYLOADS),
    *(
        HostileHttp((_CHUNKED + chunks,))
        for chunks in (
            b"0\r\n\r\n",
            b"%x\r\n%s\r\n0\r\n\r\n" % (len(_GOOD), _GOOD),
            b"".join(b"1\r\n%c\r\n" % byte for byte in _GOOD) + b"0\r\n\r\n",
            b"zz\r\nabc\r\n0\r\n\r\n",
            b"-1\r\n\r\n",
            b"ffffffffffffffffff\r\nabc",
            b"7fffffffffffffff\r\nabc",
            b"3;ext=\xff\r\nabc\r\n0\r\n\r\n",
            b"3\r\nabcdef\r\n0\r\n\r\n",
            b"3\nabc\n0\n\n",
            b"0\r\nTrailer: x\r\n\r\n",
            b"0\r\n" + b"T: x\r\n" * 1_000 + b"\r\n",
            b"ffff\r\n" + b"a" * 65_535 + b"\r\nffff\r\n" + b"a" * 65_535 + b"\r\n0\r\n\r\n",
        )
    ),
    # What costs a parser more than it costs us to send.
    *(
        HostileHttp((_posted_as(b"application/json" + more, b"", _GOOD),))
        for more in (b";" * 7_900, b"(" * 3_000, b";a=1" * 1_900, b"; " + b"a " * 3_900)
    ),
    HostileHttp((_post(b"Content-Encoding: gzip\r\n", _BOMB),)),
    HostileHttp((b"GET" + _post(b"Content-Encoding: gzip\r\n", _BOMB).removeprefix(b"POST"),)),
    # A declined upgrade, and what comes after it.
    HostileHttp(
        (
            b"GET /livez HTTP/1.1\r\nHost: b\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            + _POST
            + b"Content-Length: 60\r\n\r\n",
            b'{"a":"\xc3k"}' + b"GET /api/operations HTTP/1.1\r\nHost: b\r\n\r\n",
        )
    ),
    # Pipelined: one behind the other, good behind bad.
    HostileHttp((_post(b"", _GOOD) * 20,)),
    HostileHttp((_post(b"", b"{") + _post(b"", _GOOD),)),
    HostileHttp((b"\r\n\r\n\r\n" + _post(b"", _GOOD),)),
    HostileHttp((_post(b"Connection: close\r\n", _GOOD) + _post(b"", _GOOD),)),
    # Slow, cut short, or silent.
    HostileHttp(tuple(b"GET /livez HTTP/1.1\r\nHost: b\r\n\r\n"[i : i + 1] for i in range(33))),
    HostileHttp((_POST + b"Content-Length: 100\r\n\r\n", b'{"device', b'_uuid":')),
    HostileHttp((_POST + b"Content-Length: 5\r\n\r\n", b"{", b'"', b"a", b'"')),
    HostileHttp((_CHUNKED, b"5\r\n", b'{"a')),
    HostileHttp((b"GET /livez HTTP/1.1\r\nX: ", b"y" * 1000, b"y" * 1000)),
    HostileHttp((b"",)),
    HostileHttp((b"G",)),
)

# ---- kept, put together -------------------------------------------------------------------------


def kept_publishes() -> Iterator[HostilePublish]:
    """Each kept topic, property and payload, with nothing else unusual about it."""
    for topic in TOPICS:
        yield HostilePublish(topic, b"", _GOOD)
        yield HostilePublish(topic, b"", _GOOD, retain=True)
    for properties in PROPERTIES:
        yield HostilePublish(b"plugin/request/health", properties, b"{}")
        yield HostilePublish(b"plugin/request/control/someone", properties, _GOOD)
    for payload in PAYLOADS:
        for operation in OPERATIONS:
            yield HostilePublish(f"plugin/request/{operation}".encode(), b"", payload)


# ---- strategies ---------------------------------------------------------------------------------

_TEXT = st.text(max_size=40)
_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | _TEXT
    | st.sampled_from([BOARD_A, BOARD_B, ALIAS, "temperature", "led", "on", "set"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=8,
)
_NAMES = (
    "device_uuid",
    "sensor",
    "port_type",
    "port_id",
    "port",
    "action",
    "value",
    "frequency",
    "preset_key",
    "parameters",
    "requests",
    "operation",
    "request_id",
    "reply_to",
    "expires_at",
)
_OBJECTS = st.dictionaries(st.sampled_from(_NAMES) | _TEXT, _VALUES, max_size=8)
_REQUESTS = st.builds(
    lambda fields, odd: {**fields, **odd},
    st.sampled_from(
        [
            _control(),
            {"device_uuid": BOARD_A, "sensor": "temperature"},
            {"device_uuid": BOARD_A, "preset_key": ORDINARY_PRESET},
            {"requests": [{"operation": "control", **_control()}]},
        ]
    ),
    _OBJECTS,
)


def _dumped(value: Any) -> bytes:
    # With NaN and Infinity, as json.dumps writes them unless told otherwise.
    return json.dumps(value).encode()


_PAYLOADS = (
    _REQUESTS.map(_dumped)
    | _OBJECTS.map(_dumped)
    | st.builds(
        lambda whole, at, junk: whole[: at % (len(whole) + 1)] + junk,
        _REQUESTS.map(_dumped),
        st.integers(0, 400),
        st.binary(max_size=6),
    )
    | st.binary(max_size=60)
)
_RAW_TEXT = st.binary(max_size=20) | st.text(max_size=20).map(lambda text: text.encode())
_TOPIC_TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=20).map(
    lambda text: text.replace("+", "").replace("#", "").encode()
)
_TOPICS = st.builds(
    lambda operation, client: b"plugin/request/" + operation + client,
    st.sampled_from([name.encode() for name in OPERATIONS]) | _TOPIC_TEXT,
    st.just(b"") | _TOPIC_TEXT.map(lambda client: b"/" + client),
)
_PLAIN_TEXT = _TOPIC_TEXT.map(lambda text: text[:40])
_WELL_FORMED = (
    st.builds(lambda text: _prop(0x08, b"plugin/reply/" + text), _PLAIN_TEXT),
    st.builds(lambda raw: _prop(0x09, raw), st.binary(max_size=40)),
    st.builds(lambda text: _prop(0x03, text), _PLAIN_TEXT),
    st.integers(0, 0xFFFFFFFF).map(_expiry),
    st.sampled_from([b"\x01\x00", b"\x01\x01"]),
    st.builds(_user, _PLAIN_TEXT, _PLAIN_TEXT),
    st.builds(_user, st.sampled_from([b"traceparent", b"tracestate", b"__stat"]), _PLAIN_TEXT),
)
_ILL_FORMED = (
    st.builds(lambda text: _prop(0x08, b"plugin/reply/" + text), _RAW_TEXT),
    st.builds(lambda text: _prop(0x08, text), _RAW_TEXT),
    st.builds(lambda text: _prop(0x03, text), _RAW_TEXT),
    st.builds(_user, _RAW_TEXT, _RAW_TEXT),
    st.binary(max_size=8),
)
# Most of them such that a broker passes them on.
_PROPERTIES = st.one_of(
    *[
        st.lists(st.one_of(*_WELL_FORMED), max_size=4, unique_by=lambda prop: prop[0])
        for _ in range(4)
    ],
    st.lists(st.one_of(*_WELL_FORMED, *_ILL_FORMED), max_size=4),
).map(b"".join)
_HEADER_LINES = st.lists(
    st.builds(
        lambda name, value: name + b": " + value + b"\r\n",
        st.sampled_from(
            [
                b"Host",
                b"Content-Type",
                b"Content-Length",
                b"Transfer-Encoding",
                b"Idempotency-Key",
                b"Connection",
                b"Expect",
                b"traceparent",
                b"X",
            ]
        )
        | st.binary(max_size=8),
        st.binary(max_size=20) | st.sampled_from([b"application/json", b"chunked", b"close"]),
    ),
    max_size=4,
).map(b"".join)
_PATHS = st.builds(
    lambda path, more: path + more,
    st.sampled_from(
        [
            b"/",
            b"/api/sensor-data?",
            b"/api/control",
            b"/api/preset",
            b"/api/batch",
            b"/api/devices/",
            b"/docs/",
            b"/console/",
            b"/metrics",
        ]
    ),
    st.binary(max_size=20).map(lambda raw: raw.replace(b" ", b"").replace(b"\n", b"")),
)
_METHODS = st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"])


class Ingredients(NamedTuple):
    """What strategies have made; put together at random by `publishes` and `requests`."""

    topics: list[bytes]
    properties: list[bytes]
    payloads: list[bytes]
    methods: list[bytes]
    paths: list[bytes]
    headers: list[bytes]


def ingredients(of_each: int) -> Ingredients:
    """So many of each, plus those that are kept."""
    return Ingredients(
        [*TOPICS, *_made(_TOPICS, of_each)],
        [*PROPERTIES, *_made(_PROPERTIES, of_each)],
        [*PAYLOADS, *_made(_PAYLOADS, of_each)],
        _made(_METHODS, 20),
        _made(_PATHS, of_each),
        [*HEADERS, *_made(_HEADER_LINES, of_each)],
    )


def publishes(made: Ingredients, rng: random.Random) -> Iterator[HostilePublish]:
    """Publishes without end, of which one in fifty is retained."""
    while True:
        yield HostilePublish(
            rng.choice(made.topics),
            rng.choice(made.properties),
            rng.choice(made.payloads),
            rng.random() < 0.02,
        )


def requests(made: Ingredients, rng: random.Random) -> Iterator[HostileHttp]:
    """HTTP requests without end, most of them whole."""
    while True:
        body = rng.choice(made.payloads)
        line = rng.choice(made.methods) + b" " + rng.choice(made.paths) + b" HTTP/1.1\r\n"
        odd = rng.choice(made.headers) if rng.random() < 0.3 else b""
        head = line + b"Host: b\r\nContent-Type: application/json\r\n" + odd
        yield HostileHttp((head + b"Content-Length: %d\r\n\r\n" % len(body) + body,))


def _made(strategy: st.SearchStrategy[bytes], count: int) -> list[bytes]:
    found: list[bytes] = []

    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: bytes) -> None:
        found.append(example)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collect()
    return found
