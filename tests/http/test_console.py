"""The console: what it remembers, who may see it, and what a person does with it."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Page, Route, expect

from bridge import __version__
from bridge.observability.activity import LISTED_REQUESTS, WINDOW_SECONDS, Activity
from bridge.observability.observations import RequestAnswered
from tests.conftest import ConnectBoard, StartBridge
from tests.lab.bridge import Bridge
from tests.lab.browser import open_page
from tests.lab.mosquitto import Mosquitto
from tests.lab.platform import (
    ALIAS,
    BOARD_A,
    BOARD_B,
    BOARD_C,
    NAMES,
    ORDINARY_PRESET,
    UNKNOWN_BOARD,
    Platform,
)

Json = dict[str, Any]

# What people call the sensors of BOARD_A: on the device itself, else in its product.
GIVEN_NAMES = {
    "temperature": "讲台温度",
    "humidity": "室内湿度",
    "rain": "窗外雨水",
    "rain_level": "窗外雨量",
}
ASSETS = sorted(
    path.name
    for path in (Path(__file__).parents[2] / "bridge" / "http" / "console" / "static").iterdir()
    if path.name != "page.html"
)


# ---- what is remembered -------------------------------------------------------------------------


class Clock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def activity(clock: Clock) -> Activity:
    return Activity(clock)


def answered(
    code: int = 200, seconds: float = 0.002, uuid: str | None = BOARD_A
) -> RequestAnswered:
    return RequestAnswered("http", "control", uuid, code, "ok", seconds)


@pytest.mark.parametrize("seconds", [0.0, 1e-7, 0.000_3, 0.004, 0.999, 1.0, 7.7, 110.0])
def test_durations_are_told_within_a_sixteenth_part(activity, clock, seconds):
    activity.observe(answered(seconds=seconds))
    clock.now += 1

    told = activity.snapshot().window.p50_ms

    assert told == pytest.approx(max(seconds, 1e-6) * 1000, rel=1 / 16, abs=0.001)


def test_quantiles_are_those_of_all_requests_of_the_second(activity, clock):
    for milliseconds in range(1, 1001):
        activity.observe(answered(seconds=milliseconds / 1000))
    clock.now += 1

    (second,) = activity.snapshot().seconds

    assert second.p50_ms == pytest.approx(500, rel=1 / 16)
    assert second.p99_ms == pytest.approx(990, rel=1 / 16)


def test_refusals_and_failures_are_counted_apart(activity, clock):
    for code in (200, 200, 404, 429, 500, 503, 504):
        activity.observe(answered(code))
    clock.now += 1

    window = activity.snapshot().window

    assert (window.requests, window.refused, window.failed) == (7, 2, 3)


def test_what_is_older_than_five_minutes_is_forgotten(activity, clock):
    activity.observe(answered())
    clock.now += WINDOW_SECONDS
    assert activity.snapshot().window.requests == 1

    clock.now += 1
    snapshot = activity.snapshot()
    assert (snapshot.window.requests, snapshot.seconds) == (0, [])


def test_a_second_is_shown_once_it_is_over(activity, clock):
    activity.observe(answered())
    assert activity.snapshot().seconds == []

    clock.now += 1
    assert [second.requests for second in activity.snapshot().seconds] == [1]


def test_the_last_200_requests_are_listed_and_numbered(activity):
    for _ in range(LISTED_REQUESTS + 50):
        activity.observe(answered())

    numbers = [seen.number for seen in activity.snapshot().requests]

    assert numbers == list(range(51, LISTED_REQUESTS + 51))


def test_errors_are_listed_longer_than_other_requests(activity):
    for code in (404, 200, 503):
        activity.observe(answered(code))
    for _ in range(LISTED_REQUESTS):
        activity.observe(answered())

    listed = [(seen.number, seen.code) for seen in activity.snapshot().requests]

    assert listed[:3] == [(1, 404), (3, 503), (4, 200)]
    assert len(listed) == LISTED_REQUESTS + 2


def test_a_long_text_for_a_uuid_is_not_kept(activity):
    activity.observe(answered(400, uuid="x" * 60_000))

    (seen,) = activity.snapshot().requests

    assert len(seen.device_uuid) == 37


def test_a_long_name_of_who_asked_is_not_kept(activity):
    activity.observe(answered()._replace(who="mqtt:" + "x" * 60_000))

    (seen,) = activity.snapshot().requests

    assert len(seen.who) == 129


# ---- who is told what ---------------------------------------------------------------------------


async def snapshot_of(bridge: Bridge, key: str | None = None) -> Json:
    headers = {} if key is None else {"X-API-Key": key}
    async with (
        aiohttp.ClientSession(base_url=bridge.url, headers=headers) as http,
        http.get("/console/snapshot") as response,
    ):
        assert response.status == 200
        assert response.headers["Cache-Control"] == "no-store"
        return await response.json()


async def look_up(bridge: Bridge, uuid: str, key: str | None = None) -> int:
    headers = {} if key is None else {"X-API-Key": key}
    async with (
        aiohttp.ClientSession(base_url=bridge.url, headers=headers) as http,
        http.get(f"/api/devices/{uuid}") as response,
    ):
        return response.status


async def test_snapshot_shows_health_and_what_was_answered(private_bridge):
    bridge = private_bridge(DEVICE_LIST="open")
    await look_up(bridge, UNKNOWN_BOARD)

    snapshot = await snapshot_of(bridge)

    (seen,) = snapshot["requests"]
    assert abs(seen.pop("at") - time.time()) < 10
    assert seen.pop("ms") > 0
    assert seen == {
        "number": 1,
        "transport": "http",
        "operation": "device",
        "device_uuid": UNKNOWN_BOARD,
        "code": 404,
        "outcome": "device_not_found",
        "detail": "设备不存在，请核对 device_uuid",
        "who": "http",
    }
    assert snapshot["devices_hidden"] is False
    assert snapshot["health"]["status"] == "healthy"
    # By its name at the broker, whoever has a login there could take its place.
    assert bridge.instance not in str(snapshot)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({}, None),
        ({"DEVICE_LIST": "off"}, None),
        ({"DEVICE_LIST": "off", "API_KEYS": "all:the-secret"}, "the-secret"),
        ({"API_KEYS_FILE": "one:the-secret operations=device"}, "the-secret"),
    ],
    ids=["no keys", "off", "off, with a key", "a key that may not list"],
)
async def test_who_may_not_list_devices_learns_none_from_the_snapshot(
    private_bridge: StartBridge, tmp_path: Path, settings: dict[str, str], key: str | None
):
    """Where there are no keys, a UUID is all that guards a device."""
    if "API_KEYS_FILE" in settings:
        (tmp_path / "keys").write_text(settings["API_KEYS_FILE"])
        settings = {"API_KEYS_FILE": str(tmp_path / "keys")}
    bridge = private_bridge(**settings)
    for uuid in (BOARD_A, UNKNOWN_BOARD):
        await look_up(bridge, uuid, key)

    snapshot = await snapshot_of(bridge, key)

    assert [seen["code"] for seen in snapshot["requests"]] == [200, 404]
    for seen in snapshot["requests"]:
        assert (seen["device_uuid"], seen["detail"], seen["who"]) == (None, None, "http")
    assert snapshot["devices_hidden"] is True
    assert BOARD_A not in str(snapshot)


@pytest.fixture
def guarded_bridge(private_bridge: StartBridge, tmp_path: Path) -> Bridge:
    keys = tmp_path / "keys"
    keys.write_text(
        f"teacher:all-of-it\nclass-a:only-a devices={BOARD_A}\nreader:no-device operations=control"
    )
    return private_bridge(API_KEYS_FILE=str(keys))


async def test_without_a_key_the_page_holds_nothing_and_the_snapshot_is_refused(guarded_bridge):
    async with aiohttp.ClientSession(base_url=guarded_bridge.url) as http:
        for path in ("/console", *(f"/console/{name}" for name in ASSETS)):
            async with http.get(path) as response:
                text = await response.text()
                assert response.status == 200, path
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                policy = response.headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            assert "frame-ancestors 'none'" in policy
            assert __version__ not in text
            assert guarded_bridge.instance not in text
        for headers in ({}, {"X-API-Key": "wrong"}):
            async with http.get("/console/snapshot", headers=headers) as response:
                assert response.status == 401
                assert (await response.json())["error"] == "unauthorized"


@pytest.mark.parametrize(
    ("key", "seen"),
    [("all-of-it", [BOARD_A, BOARD_B]), ("only-a", [BOARD_A]), ("no-device", [])],
)
async def test_a_key_is_told_only_of_requests_that_it_may_make_itself(guarded_bridge, key, seen):
    for uuid in (BOARD_A, BOARD_B):
        assert await look_up(guarded_bridge, uuid, "all-of-it") == 200

    snapshot = await snapshot_of(guarded_bridge, key)

    assert [request["device_uuid"] for request in snapshot["requests"]] == seen


async def test_keys_that_ask_at_the_same_time_are_each_told_what_is_theirs(guarded_bridge):
    for uuid in (BOARD_A, BOARD_B):
        assert await look_up(guarded_bridge, uuid, "all-of-it") == 200
    keys = {"all-of-it": [BOARD_A, BOARD_B], "only-a": [BOARD_A], "no-device": []}
    snapshots = await asyncio.gather(*(snapshot_of(guarded_bridge, key) for key in [*keys] * 5))
    for key, snapshot in zip([*keys] * 5, snapshots, strict=True):
        assert [request["device_uuid"] for request in snapshot["requests"]] == keys[key]


async def sensor_names(bridge: Bridge, uuid: str, key: str | None = None) -> tuple[int, Json]:
    headers = {} if key is None else {"X-API-Key": key}
    async with (
        aiohttp.ClientSession(base_url=bridge.url, headers=headers) as http,
        http.get("/console/sensor-names", params={"device_uuid": uuid}) as response,
    ):
        return response.status, await response.json()


async def test_sensors_are_named_as_people_did_on_the_device_else_in_its_product(bridge):
    assert await sensor_names(bridge, BOARD_A) == (200, GIVEN_NAMES)
    for unknown in (UNKNOWN_BOARD, "", "x" * 60_00):
        assert await sensor_names(bridge, unknown) == (200, {})


async def test_a_key_is_told_names_of_its_devices_alone(guarded_bridge):
    assert (await sensor_names(guarded_bridge, BOARD_A, "only-a"))[0] == 200
    assert (await sensor_names(guarded_bridge, BOARD_B, "only-a"))[0] == 403
    assert (await sensor_names(guarded_bridge, BOARD_A, "no-device"))[0] == 403
    assert (await sensor_names(guarded_bridge, BOARD_A))[0] == 401


# ---- what a person does with it -----------------------------------------------------------------


@pytest.fixture
async def page(private_bridge: StartBridge) -> AsyncIterator[Page]:
    """Closed before the test's own bridges are: a page rightly complains of a bridge that died."""
    del private_bridge
    async with open_page() as opened:
        await opened.emulate_media(color_scheme="light")
        yield opened


async def open_device(page: Page, uuid: str) -> None:
    await page.get_by_label("设备 UUID").fill(uuid)
    await page.get_by_role("button", name="查看", exact=True).click()


def rows(page: Page, *texts: str) -> Any:
    """The rows of the list of requests that hold all these texts."""
    found = page.locator("#requests tr")
    for text in texts:
        found = found.filter(has_text=text)
    return found


async def test_a_switched_led_reaches_the_board_and_the_list(
    page: Page, private_bridge: StartBridge, board: ConnectBoard
):
    bridge = private_bridge(DEVICE_LIST="open")
    listening = await board(BOARD_A, bridge.broker)
    await page.goto(f"{bridge.url}/console")
    await open_device(page, BOARD_A)
    await expect(page.locator("#device .name")).to_have_text(NAMES[BOARD_A])
    reading = page.locator(".reading", has_text="temperature")
    await expect(reading).to_contain_text("讲台温度")
    await expect(reading).to_contain_text("29.1°C")
    led = page.locator(".port", has_text=ALIAS)
    for button in await led.get_by_role("button").all():
        # Nobody knows yet, so that neither is claimed.
        await expect(button).to_have_attribute("aria-pressed", "false")

    await led.get_by_role("button", name="开").click()

    command = (await listening.next_command()).json
    assert command == {"cmd": "led", "device_id": 1, "action": "on"}
    await expect(led.get_by_role("button", name="开")).to_have_attribute("aria-pressed", "true")
    await expect(led.locator("summary")).to_contain_text("已发送「开」")
    await expect(rows(page, "HTTP", "control", BOARD_A, "200")).to_have_count(1)


async def test_a_slider_sends_the_value_that_it_shows(
    page: Page, bridge: Bridge, board: ConnectBoard
):
    listening = await board(BOARD_A)
    await page.goto(f"{bridge.url}/console")
    await open_device(page, BOARD_A)
    servo = page.locator(".port.servo")
    await servo.get_by_role("slider").press("End")
    await expect(servo.locator("output")).to_have_text("180°")

    await servo.get_by_role("button", name="发送").click()

    assert (await listening.next_command()).json["angle"] == 180
    await expect(servo.locator("summary")).to_contain_text("已发送「180°」")


async def test_a_preset_is_run_by_its_button(page: Page, bridge: Bridge, board: ConnectBoard):
    listening = await board(BOARD_A)
    await page.goto(f"{bridge.url}/console")
    await open_device(page, BOARD_A)

    await page.get_by_role("button", name="执行 一号灯闪烁").click()

    assert (await listening.next_command()).json["preset_type"] == "blink", ORDINARY_PRESET
    await expect(page.locator(".preset summary")).to_contain_text("一号灯闪烁")


async def test_each_press_is_a_request_of_its_own(page: Page, bridge: Bridge, board: ConnectBoard):
    """Under one idempotency key the second press would be answered without being sent."""
    listening = await board(BOARD_A)
    await page.goto(f"{bridge.url}/console")
    await open_device(page, BOARD_A)
    led = page.locator(".port", has_text=ALIAS)

    for name in ("开", "关", "开"):
        await led.get_by_role("button", name=name).click()
        await expect(led.get_by_role("button", name=name)).to_have_attribute("aria-pressed", "true")

    sent = await listening.next_commands(3)
    assert [command["action"] for command in sent] == ["on", "off", "on"]


async def test_a_refusal_is_shown_as_the_bridge_words_it(page: Page, bridge: Bridge):
    await page.goto(f"{bridge.url}/console")
    await open_device(page, BOARD_A)
    led = page.locator(".port", has_text=ALIAS)

    await led.get_by_role("button", name="开").click()

    await expect(led.locator("summary")).to_contain_text("「开」没有执行")
    await led.locator("summary").click()
    reply = json.loads(await led.locator("pre").inner_text())
    assert reply["error"] == "device_unreachable"
    await expect(led.locator("summary")).to_contain_text(reply["detail"])
    await expect(led.get_by_role("button", name="开")).to_have_attribute("aria-pressed", "false")


async def test_a_device_that_is_not_there_is_told_as_such(page: Page, bridge: Bridge):
    await page.goto(f"{bridge.url}/console")
    await open_device(page, UNKNOWN_BOARD)
    await expect(page.locator("#device")).to_contain_text("404")


async def test_a_name_with_markup_in_it_is_only_text(
    page: Page, bridge: Bridge, platform: Platform
):
    name = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    platform.update_device(BOARD_C, name=name)
    await page.goto(f"{bridge.url}/console")
    await open_device(page, BOARD_C)
    await expect(page.locator("#device .name")).to_have_text(name)
    assert await page.locator("#device img, #device script").count() == 0


async def test_a_killed_broker_is_told_within_three_seconds_and_its_return_too(
    page: Page, private_bridge: StartBridge, private_mosquitto: Callable[..., Mosquitto]
):
    broker = private_mosquitto()
    bridge = private_bridge(broker=broker)
    await page.goto(f"{bridge.url}/console")
    await expect(page.locator("#verdict")).to_have_text("一切正常")

    await asyncio.to_thread(broker.kill)
    await expect(page.locator("#peer-mqtt")).to_contain_text("未连接", timeout=3000)
    await expect(page.locator("#verdict")).to_contain_text("MQTT 服务器未连接")

    await asyncio.to_thread(broker.start)
    await expect(page.locator("#verdict")).to_have_text("一切正常")


async def test_a_frozen_bridge_is_told_within_three_seconds(
    page: Page, private_bridge: StartBridge
):
    bridge = private_bridge(DEVICE_LIST="open")
    await page.goto(f"{bridge.url}/console")
    await expect(page.locator("#verdict")).to_have_text("一切正常")

    bridge.pause()
    try:
        await expect(page.locator("#verdict")).to_contain_text("没有回应", timeout=3000)
    finally:
        bridge.resume()

    await expect(page.locator("#verdict")).to_have_text("一切正常")


async def test_a_reload_shows_what_was_there_before(page: Page, private_bridge: StartBridge):
    bridge = private_bridge(DEVICE_LIST="open")
    await page.goto(f"{bridge.url}/console")
    await open_device(page, UNKNOWN_BOARD)
    await expect(rows(page, UNKNOWN_BOARD)).to_have_count(1)

    await page.reload()

    # The page opens the device of its address again.
    await expect(rows(page, UNKNOWN_BOARD, "404")).to_have_count(2)
    await expect(page.locator("#plot-rate .note")).not_to_contain_text(" 0 次")


async def test_with_a_wrong_key_nothing_is_shown_and_with_the_right_one_everything(
    page: Page, guarded_bridge: Bridge
):
    await look_up(guarded_bridge, BOARD_A, "all-of-it")
    everything = page.locator("#all")
    await page.goto(f"{guarded_bridge.url}/console")
    await expect(page.get_by_label("API 密钥")).to_be_focused()
    await expect(everything).to_be_hidden()

    for key in ("wrong", "错的"):
        await page.get_by_label("API 密钥").fill(key)
        await page.get_by_role("button", name="打开").click()
        await expect(page.get_by_role("alert")).to_contain_text("密钥不对")
        await expect(everything).to_be_hidden()
        assert await page.locator("#requests tr").count() == 0
        assert __version__ not in await page.content()

    await page.get_by_label("API 密钥").fill("all-of-it")
    await page.get_by_role("button", name="打开").click()
    await expect(rows(page, BOARD_A)).to_have_count(1)
    await open_device(page, BOARD_A)
    await expect(page.locator("#device .name")).to_have_text(NAMES[BOARD_A])

    await page.get_by_role("button", name="退出").click()
    await expect(everything).to_be_hidden()
    assert NAMES[BOARD_A] not in await page.content()


async def test_the_chosen_language_and_theme_are_kept(page: Page, bridge: Bridge):
    await page.goto(f"{bridge.url}/console")
    root = page.locator("html")
    await expect(root).to_have_attribute("lang", "zh-CN")
    await expect(root).to_have_attribute("data-theme", "light")

    await page.get_by_role("button", name="Switch to English").click()
    await page.get_by_role("button", name="Dark").click()
    await page.reload()

    await expect(root).to_have_attribute("lang", "en")
    await expect(root).to_have_attribute("data-theme", "dark")
    await expect(page.get_by_role("heading", name="Recent requests")).to_be_visible()
    assert await page.evaluate("getComputedStyle(document.body).colorScheme") == "dark"


async def test_the_language_is_first_that_of_the_settings(page: Page, private_bridge: StartBridge):
    bridge = private_bridge(LANGUAGE="en")
    await page.goto(f"{bridge.url}/console")
    await expect(page.locator("#verdict")).to_have_text("All is well")


async def test_a_request_tells_its_reason_and_leads_to_its_device(
    page: Page, private_bridge: StartBridge
):
    bridge = private_bridge(DEVICE_LIST="open")
    await look_up(bridge, BOARD_A)
    await look_up(bridge, UNKNOWN_BOARD)
    await page.goto(f"{bridge.url}/console")
    await expect(rows(page, UNKNOWN_BOARD)).to_contain_text("设备不存在")

    await page.get_by_label("筛选请求").fill(BOARD_A)
    await expect(rows(page, UNKNOWN_BOARD)).to_have_count(0)
    await rows(page, BOARD_A).first.get_by_role("link").click()

    await expect(page.locator("#device .name")).to_have_text(NAMES[BOARD_A])
    # Its name is told in the list from now on.
    await expect(rows(page, NAMES[BOARD_A])).not_to_have_count(0)


async def offer_devices(page: Page) -> list[str]:
    """A list of one device, whatever is asked; what was asked for."""
    asked: list[str] = []

    async def listed(route: Route) -> None:
        asked.append(route.request.url)
        device = {"device_uuid": BOARD_A, "name": "走廊板", "online": True, "room": "三楼"}
        await route.fulfill(
            json={"code": 200, "msg": "成功", "data": {"devices": [device], "next_cursor": None}}
        )

    await page.route("**/api/devices?*", listed)
    return asked


async def test_a_device_is_found_by_name_and_opened(page: Page, bridge: Bridge):
    asked = await offer_devices(page)
    await page.goto(f"{bridge.url}/console")
    await page.get_by_label("查找设备").fill("走廊")
    await page.get_by_label("房间").select_option("三楼")
    entry = page.locator("#devices").get_by_role("link", name="走廊板")
    await expect(entry).to_contain_text("三楼")

    await entry.press("Enter")

    await expect(page.locator("#device .name")).to_have_text(NAMES[BOARD_A])
    await expect(entry).to_have_attribute("aria-current", "true")
    assert any("query=%E8%B5%B0%E5%BB%8A" in url for url in asked)


async def test_a_list_that_is_refused_says_why_and_leaves_the_uuid(page: Page, bridge: Bridge):
    refusal = {"code": 403, "msg": "失败", "data": None, "detail": "不可列出", "error": "forbidden"}
    await page.route("**/api/devices?*", lambda route: route.fulfill(status=403, json=refusal))
    await page.goto(f"{bridge.url}/console")
    await expect(page.locator("#devices-note")).to_have_text("不可列出")
    await open_device(page, BOARD_A)
    await expect(page.locator("#device .name")).to_have_text(NAMES[BOARD_A])


# What came after Chromium 90. A method or syntax that it does not know breaks a script.
NEWER = {
    ".js": r"\.(at|toReversed|toSorted|toSpliced|with|findLast|findLastIndex|isWellFormed"
    r"|showPopover|checkVisibility|getSetCookie|union|intersection|difference)\("
    r"|\b(structuredClone|randomUUID|hasOwn|groupBy|fromAsync|withResolvers|waitAsync)\("
    r"|AbortSignal\.(timeout|any)|URL\.(canParse|parse)|Promise\.try|\{ cause"
    r"|static \{|#\w+ in |\busing \w+ =|with \{ type:",
    ".css": r"light-dark\(|color-mix\(|\b(oklch|oklab|lab|lch|color|hwb)\(|:has\(|:user-"
    r"|:popover-open|:modal|@(container|layer|scope|starting-style)|\d[sld]v[hw]\b"
    r"|\d(cqw|cqh|rlh|lh)\b|(width|height) *[<>]|subgrid|text-wrap|\s(scale|rotate|translate):"
    r"|animation-timeline|anchor\(|field-sizing|interpolate-size",
    ".html": r"\b(popover|inert|fetchpriority)\b|blocking=",
}


@pytest.mark.parametrize("suffix", NEWER)
def test_the_page_keeps_to_what_chromium_90_knows(suffix):
    newer = re.compile(NEWER[suffix], re.MULTILINE)
    static = Path(__file__).parents[2] / "bridge" / "http" / "console" / "static"
    files = [file for file in static.iterdir() if file.suffix == suffix]
    assert files
    for file in files:
        found = newer.search(file.read_text(encoding="utf-8"))
        assert found is None, (file.name, found)


def test_no_rule_of_style_is_inside_another():
    """Chromium 90 does not know nested rules; only a rule for a medium holds others."""
    text = (Path(__file__).parents[2] / "bridge/http/console/static/console.css").read_text("utf-8")
    open_rules: list[str] = []
    for head, brace in re.findall(
        r"([^{};]*)([{}])", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    ):
        if brace == "}":
            open_rules.pop()
            continue
        assert all(rule.startswith("@") for rule in open_rules), head
        open_rules.append(head.strip())
    assert not open_rules


async def test_nothing_is_wider_than_the_screen(page: Page, bridge: Bridge):
    """640 is a screen of 1280 at 200 % zoom."""
    await page.goto(f"{bridge.url}/console")
    await open_device(page, BOARD_A)
    await expect(page.locator(".port")).not_to_have_count(0)
    for width in (320, 390, 640, 768, 1280):
        await page.set_viewport_size({"width": width, "height": 400})
        assert await page.evaluate("document.documentElement.scrollWidth") <= width, width


async def test_a_device_is_opened_and_switched_by_keyboard_alone(
    page: Page, bridge: Bridge, board: ConnectBoard
):
    await offer_devices(page)
    listening = await board(BOARD_A)
    await page.goto(f"{bridge.url}/console")
    entry = page.locator("#devices").get_by_role("link", name="走廊板")
    await expect(entry).to_be_visible()

    await tab_to(page, "#search")
    await page.keyboard.type("走廊")
    await tab_to(page, "#devices a")
    await page.keyboard.press("Enter")

    # Whoever uses a screen reader or the keyboard goes on from the device, not from the list.
    await expect(page.locator("#device-title")).to_be_focused()
    await tab_to(page, ".switch button[data-action=on]")
    await page.keyboard.press("Space")
    assert (await listening.next_command()).json["action"] == "on"
    await expect(page.locator(".outcome summary").first).to_be_visible()
    await tab_to(page, ".outcome summary")
    await page.keyboard.press("Enter")
    await expect(page.locator(".outcome pre").first).to_be_visible()
    await tab_to(page, ".servo input")
    await page.keyboard.press("ArrowRight")
    await tab_to(page, ".servo .slider button")
    await page.keyboard.press("Enter")
    assert (await listening.next_command()).json["angle"] == 91
    button = page.get_by_role("button", name="执行 一号灯闪烁")
    await tab_to(page, ".preset button[aria-label='执行 一号灯闪烁']")
    await page.keyboard.press("Enter")
    await expect(page.locator(".preset summary")).to_contain_text("一号灯闪烁")
    await expect(button).to_be_focused()


async def tab_to(page: Page, selector: str) -> None:
    """Press Tab until what the selector finds has the focus, which has to be seen."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        if await page.evaluate("selector => document.activeElement.matches(selector)", selector):
            outline = "getComputedStyle(document.activeElement).outlineStyle"
            assert await page.evaluate(outline) != "none", selector
            return
    raise AssertionError(f"{selector} is not reached by Tab")
