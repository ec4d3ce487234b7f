"""The API documents are valid, true to what the bridge answers, and usable where they are read."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV30SpecValidator, OpenAPIV31SpecValidator
from playwright.async_api import Page, expect

from bridge.apidocs import Address, Documents, page
from bridge.apidocs.examples import EXAMPLE_DEVICE, EXAMPLES
from bridge.core.operations import OPERATIONS
from bridge.settings import Settings
from tests.lab.browser import open_page
from tests.lab.platform import BOARD_A, BOARD_B, BOARD_C, BOARD_D, UNKNOWN_BOARD

Json = dict[str, Any]

HERE = Path(__file__).parents[1]
KEYS = {"API_KEYS": "reader:open-sesame"}
KEY_HEADER = {"X-API-Key": "open-sesame"}
LOCAL = Address("http", "bridge.example", ":9001")
ON_MQTT = [row.name for row in OPERATIONS.values() if row.over_mqtt]
WITH_EXAMPLES = [
    pytest.param(name, example.fields, id=f"{name}-{number}")
    for name, examples in EXAMPLES.items()
    for number, example in enumerate(examples, start=1)
]


def made(path: str, *, guarded: bool = False, **settings: Any) -> Json:
    """One document, as a bridge with these settings would send it."""
    documents = Documents(Settings(_env_file=None, **settings))
    parsed = json.loads(b"".join(documents.by_path[path](guarded, LOCAL)))
    assert isinstance(parsed, dict)
    return parsed


def everything_in(part: Any) -> Iterator[Any]:
    yield part
    for inner in part.values() if isinstance(part, dict) else part if type(part) is list else ():
        yield from everything_in(inner)


def described_operations(document: Json) -> Iterator[Json]:
    for methods in document["paths"].values():
        yield from methods.values()


def check_against(schema: Json, document: Json, instance: object) -> None:
    whole = {**schema, "components": document["components"]}
    jsonschema.Draft202012Validator(whole).validate(instance)


def on_board_a(fields: Any) -> Any:
    return json.loads(json.dumps(fields).replace(EXAMPLE_DEVICE, BOARD_A))


# ---- what the official validators say -----------------------------------------------------------


@pytest.mark.parametrize("guarded", [False, True], ids=["open", "guarded"])
@pytest.mark.parametrize(
    ("path", "validator"),
    [
        ("/openapi.json", OpenAPIV31SpecValidator),
        ("/openapi-3.0.json", OpenAPIV30SpecValidator),
    ],
)
def test_openapi_document_is_valid(path, validator, guarded):
    validator(made(path, guarded=guarded)).validate()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"mqtt_protocol": "3.1.1"},
        {"mqtt_broker": "fd00::1", "mqtt_tls": True, "mqtt_username": "bridge"},
    ],
    ids=["usual", "3.1.1", "tls"],
)
def test_asyncapi_document_is_valid(settings):
    checked = subprocess.run(
        ["node", str(HERE / "lab" / "asyncapi_check.cjs")],
        input=json.dumps(made("/asyncapi.json", **settings)),
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stderr


# ---- the plain form for language models ---------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["open", "guarded"])
def plain(request: pytest.FixtureRequest) -> Json:
    return made("/openapi-3.0.json", guarded=request.param)


def test_plain_document_has_none_of_what_importers_trip_over(plain):
    refused = {"anyOf", "oneOf", "allOf", "$ref", "nullable", "const", "examples"}
    for part in everything_in(plain):
        assert part is not None
        assert part != "null"
        if isinstance(part, dict):
            assert not refused & part.keys()


def test_plain_document_describes_everything_shortly_in_both_languages(plain):
    words = [operation["description"] for operation in described_operations(plain)]
    for operation in described_operations(plain):
        words += [each["description"] for each in operation.get("parameters", [])]
    for word in words:
        assert len(word) <= 300
        assert re.search(r"[\u4e00-\u9fff]", word), word
        assert re.search(r"[A-Za-z]{3}", word), word
    for part in everything_in(plain):
        if isinstance(part, dict) and isinstance(part.get("description"), str):
            assert len(part["description"]) <= 300


def test_plain_document_offers_every_operation_under_an_id_of_its_own(plain):
    ids = [operation["operationId"] for operation in described_operations(plain)]
    assert sorted(ids) == sorted(name.replace("-", "_") for name in OPERATIONS)
    assert all(re.fullmatch(r"[A-Za-z0-9_]{1,64}", one) for one in ids)


def test_plain_document_fits_into_the_importers_limit(plain):
    assert len(json.dumps(plain, ensure_ascii=False)) < 100_000


def test_plain_document_has_the_200_response_only(plain):
    for operation in described_operations(plain):
        assert list(operation["responses"]) == ["200"]
        assert operation["tags"]


def test_a_control_names_its_port_one_way_or_the_other():
    document = made("/openapi.json")
    schema = document["components"]["schemas"]["ControlRequest"]
    sent = {"device_uuid": BOARD_A, "action": "on"}
    for port in ({"port": "LED1"}, {"port_type": "led", "port_id": 1}):
        check_against(schema, document, {**sent, **port})
    for port in ({}, {"port_type": "led"}, {"port_type": "lamp", "port_id": 1}):
        with pytest.raises(jsonschema.ValidationError):
            check_against(schema, document, {**sent, **port})


def test_every_component_is_used():
    for path in ("/openapi.json", "/asyncapi.json"):
        document = made(path)
        text = json.dumps(document)
        for name in document["components"]["schemas"]:
            assert f'"#/components/schemas/{name}"' in text, (path, name)


def test_the_public_address_is_the_server_where_it_is_set():
    url = "https://bridge.school.example/iot"
    for path in ("/openapi.json", "/openapi-3.0.json"):
        assert made(path, public_url=url)["servers"] == [{"url": url}]


def test_plain_document_names_one_security_scheme():
    document = made("/openapi-3.0.json", guarded=True)
    assert list(document["components"]["securitySchemes"]) == ["Bearer"]


# ---- documents and models agree -----------------------------------------------------------------


def test_every_operation_that_needs_fields_has_an_example():
    needing = {
        row.name
        for row in OPERATIONS.values()
        if any(field.is_required() for field in row.fields.model_fields.values())
    }
    assert needing == EXAMPLES.keys()


@pytest.mark.parametrize("kind", ["request", "error"])
def test_examples_fit_the_schemas_beside_them(kind):
    document = made("/openapi.json", guarded=True)
    seen = 0
    for operation in described_operations(document):
        bodies = (
            [operation["requestBody"]]
            if kind == "request" and "requestBody" in operation
            else operation["responses"].values()
            if kind == "error"
            else []
        )
        for body in bodies:
            content = body["content"].get("application/json", {})
            for example in content.get("examples", {}).values():
                check_against(content["schema"], document, example["value"])
                seen += 1
    assert seen


def test_asyncapi_examples_fit_the_payloads_beside_them():
    document = made("/asyncapi.json")
    for message in document["components"]["messages"].values():
        for example in message.get("examples", []):
            check_against(message["payload"], document, example["payload"])


def test_every_mqtt_operation_is_a_request_with_a_reply():
    operations = made("/asyncapi.json", mqtt_topic_prefix="school/one")
    for name in ON_MQTT:
        channel = operations["channels"][name]
        operation = operations["operations"][name.replace("-", "_")]
        assert channel["address"] == f"school/one/request/{name}"
        assert operation["action"] == "receive"
        assert operation["reply"]["address"]["location"] == "$message.header#/responseTopic"


def test_security_is_told_of_only_when_keys_are_asked_for():
    open_, guarded = made("/openapi.json"), made("/openapi.json", guarded=True)
    assert "securitySchemes" not in open_["components"]
    assert open_["security"] == []
    assert guarded["security"] == [{"Bearer": []}, {"ApiKey": []}]
    free = {
        path for path, of in guarded["paths"].items() if of.get("get", {}).get("security") == []
    }
    assert free == {"/", "/livez", "/readyz", "/health"}
    assert "401" in guarded["paths"]["/api/control"]["post"]["responses"]
    assert "401" not in open_["paths"]["/api/control"]["post"]["responses"]


def test_a_broker_on_our_own_machine_is_named_as_the_reader_reached_us():
    local, remote = (
        made("/asyncapi.json", mqtt_broker=broker)["servers"]["broker"]["host"]
        for broker in ("localhost", "broker.school.cn")
    )
    assert (local, remote) == ("bridge.example:1883", "broker.school.cn:1883")


# ---- documents and answers agree ----------------------------------------------------------------


@pytest.mark.parametrize(("name", "fields"), WITH_EXAMPLES)
async def test_example_works_over_http(name, fields, http, board, bridge):
    await board(BOARD_A)
    row = OPERATIONS[name]
    fields = on_board_a(fields)
    path = row.path.format_map(fields)
    sent = {"json": fields} if row.method == "POST" else {"params": fields}
    async with http.request(row.method, path, **sent) as response:
        body = await response.json()
    document = await _document(http, "/openapi.json")
    described = document["paths"][row.path][row.method.lower()]["responses"]["200"]
    assert response.status == 200, body
    check_against(described["content"]["application/json"]["schema"], document, body)


@pytest.mark.parametrize("name", [name for name in ON_MQTT if name != "devices"])
async def test_mqtt_replies_are_as_described(name, http, bridge, requester, board):
    await board(BOARD_A)
    document = await _document(http, "/asyncapi.json")
    messages = document["components"]["messages"]
    camel = "".join(word.capitalize() for word in name.split("-"))
    example = on_board_a(EXAMPLES[name][0].fields) if name in EXAMPLES else {}
    reply = await requester.ask(name, example)
    assert reply.code == 200
    check_against(messages[f"{camel}Reply"]["payload"], document, reply.body)
    error = await requester.ask(name, {**example, "expires_at": 1})
    assert error.code == 408
    check_against(messages[f"{camel}Error"]["payload"], document, error.body)
    assert error.user_properties.keys() <= messages[f"{camel}Error"]["headers"]["properties"].keys()


async def test_list_of_devices_is_as_described(private_bridge, connect_requester):
    process = private_bridge(DEVICE_LIST="open")
    requester = await connect_requester(process.broker)
    async with aiohttp.ClientSession(process.url) as http:
        asyncapi = await _document(http, "/asyncapi.json")
        openapi = await _document(http, "/openapi.json")
        async with http.get("/api/devices", params={"limit": 2}) as response:
            over_http = await response.json()
    over_mqtt = (await requester.ask("devices", {"limit": 2})).body
    assert over_http == over_mqtt
    assert over_http["data"]["next_cursor"]
    described = openapi["paths"]["/api/devices"]["get"]["responses"]["200"]["content"]
    check_against(described["application/json"]["schema"], openapi, over_http)
    check_against(
        asyncapi["components"]["messages"]["DevicesReply"]["payload"], asyncapi, over_mqtt
    )


async def test_schemathesis_finds_no_fault(private_bridge, board, tmp_path):
    """No 5xx, and no answer but those described: in status, type, headers and schema."""
    bridge = private_bridge(DEVICE_LIST="open")
    await board(BOARD_A, bridge.broker)
    async with aiohttp.ClientSession(bridge.url) as http:
        document = await _document(http, "/openapi.json")
    for part in everything_in(document):
        if isinstance(part, dict) and "device_uuid" in part.get("properties", {}):
            part["properties"]["device_uuid"] = {"anyOf": [_KNOWN_DEVICES, _ANY_DEVICE]}
        if isinstance(part, dict) and part.get("name") == "device_uuid":
            part["schema"] = {"anyOf": [_KNOWN_DEVICES, _ANY_DEVICE]}
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(on_board_a(document)), encoding="utf-8")
    checks = (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
        "unsupported_method",
    )
    run = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        str(file),
        f"--url={bridge.url}",
        f"--checks={','.join(checks)}",
        "--phases=examples,coverage,fuzzing",
        "--max-examples=20",
        "--request-timeout=15",
        "--seed=1",
        "--no-color",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(120):
            said, _ = await run.communicate()
    finally:
        if run.returncode is None:
            run.kill()
            await run.wait()
    assert run.returncode == 0, said.decode()


_KNOWN_DEVICES = {"enum": [BOARD_A, BOARD_B, BOARD_C, BOARD_D, UNKNOWN_BOARD]}
_ANY_DEVICE = {"type": "string", "minLength": 1, "maxLength": 36}


async def _document(http: aiohttp.ClientSession, path: str, **headers: str) -> Json:
    async with http.get(path, headers=headers) as response:
        assert response.status == 200
        parsed = await response.json()
    assert isinstance(parsed, dict)
    return parsed


# ---- how they are served ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "url"),
    [
        ({"Host": "bridge.school.lan"}, "http://bridge.school.lan"),
        ({"Host": "[fd00::1]:9001"}, "http://[fd00::1]:9001"),
        ({"Host": "bridge.school.lan", "X-Forwarded-Proto": "https"}, "https://bridge.school.lan"),
        ({"Host": "school.lan", "X-Forwarded-Proto": "https,http"}, "https://school.lan"),
    ],
)
@pytest.mark.parametrize("path", ["/openapi.json", "/openapi-3.0.json"])
async def test_server_is_where_the_reader_reached_us(path, headers, url, http):
    document = await _document(http, path, **headers)
    assert document["servers"] == [{"url": url}]


@pytest.mark.parametrize("host", ["a b", '"><script>', "x" * 300, "a:99999999"])
async def test_host_header_that_is_none_gives_way_to_our_own_address(host, guarded_bridge):
    """Who shows a key is asked for no name."""
    ports = guarded_bridge.port, guarded_bridge.settings["MQTT_PORT"]
    async with aiohttp.ClientSession(guarded_bridge.url) as http:
        document = await _document(http, "/openapi.json", Host=host, **KEY_HEADER)
        assert document["servers"] == [{"url": f"http://localhost:{ports[0]}"}]
        asynchronous = await _document(http, "/asyncapi.json", Host=host, **KEY_HEADER)
        assert asynchronous["servers"]["broker"]["host"] == f"localhost:{ports[1]}"


@pytest.mark.parametrize(
    "path",
    ["/openapi.json", "/openapi-3.0.json", "/asyncapi.json", "/docs"]
    + [f"/docs/{name}" for name in page.FILES],
)
async def test_documents_ask_for_a_key_where_there_are_keys(path, guarded_bridge):
    async with aiohttp.ClientSession(guarded_bridge.url) as session:
        async with session.get(path) as refused:
            assert refused.status == 401
            assert (await refused.json())["error"] == "unauthorized"
        async with session.get(path, headers=KEY_HEADER) as response:
            assert response.status == 200


@pytest.fixture
def guarded_bridge(private_bridge):
    return private_bridge(**KEYS)


@pytest.fixture
async def browser_page() -> AsyncIterator[Page]:
    async with open_page() as opened:
        yield opened


async def test_docs_page_sends_a_request_and_shows_its_reply(bridge, browser_page):
    await browser_page.goto(f"{bridge.url}/docs")
    reply = await _read_temperature(browser_page)
    assert reply["code"] == 200
    assert reply["data"]["value"] == 29.1


async def test_docs_page_asks_for_the_key_and_uses_it(guarded_bridge, browser_page):
    await browser_page.goto(f"{guarded_bridge.url}/docs")
    await browser_page.fill("#key", "wrong")
    await browser_page.click("#ask button")
    await expect(browser_page.locator("#fault")).to_contain_text("wrong")
    await expect(browser_page.locator(".opblock")).to_have_count(0)
    await browser_page.fill("#key", "open-sesame")
    await browser_page.click("#ask button")
    assert (await _read_temperature(browser_page))["data"]["value"] == 29.1
    # The key is still there when the page is loaded anew, and gone with the tab.
    await browser_page.goto(f"{guarded_bridge.url}/docs")
    assert (await _read_temperature(browser_page))["data"]["value"] == 29.1
    assert await browser_page.evaluate("localStorage.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "most"), [(1280, 3500), (390, 6000)])
async def test_docs_page_opens_as_a_list_that_fits_the_screen(
    guarded_bridge, browser_page, width, most, scheme
):
    await browser_page.set_viewport_size({"width": width, "height": 900})
    await browser_page.emulate_media(color_scheme=scheme)
    await browser_page.goto(f"{guarded_bridge.url}/docs")
    assert await browser_page.evaluate("document.documentElement.scrollWidth") <= width
    await browser_page.fill("#key", "open-sesame")
    await browser_page.click("#ask button")
    await expect(browser_page.locator(".opblock")).not_to_have_count(0, timeout=20_000)

    height, wide = await browser_page.evaluate(
        "[document.documentElement.scrollHeight, document.documentElement.scrollWidth]"
    )
    summary = browser_page.locator(".opblock-summary-description").first
    lines = await summary.evaluate(
        "element => element.clientHeight / parseFloat(getComputedStyle(element).lineHeight)"
        " || element.clientHeight / 20"
    )

    assert height <= most
    assert wide <= width
    assert lines < 1.8


async def _read_temperature(page: Page) -> Json:
    """Ask for board A's temperature as a person would; the reply that Swagger UI shows."""
    operation = page.locator("#operations-devices-sensor_data")
    await operation.locator(".opblock-summary-control").click()
    await operation.locator("tr[data-param-name=device_uuid] input").fill(BOARD_A)
    await operation.locator("button.execute").click()
    live = operation.locator(".live-responses-table .response .highlight-code code")
    reply = json.loads(await live.first.inner_text())
    assert isinstance(reply, dict)
    return reply
