"""Wrong API keys: counted, told in the log, and answered slowly; a valid key never waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import aiohttp
import pytest

from bridge.errors import Busy
from bridge.http import wrong_keys
from bridge.http.wrong_keys import WrongKeys

ADMIN = "admin-5ecret"


def yes() -> bool:
    return True


async def show(keys: WrongKeys, address: str, times: int) -> float:
    """The seconds that the last of so many wrong keys, shown together, waited."""
    started = asyncio.get_running_loop().time()
    await asyncio.gather(*(keys.shown(address, yes) for _ in range(times)))
    return asyncio.get_running_loop().time() - started


@pytest.fixture
async def keys() -> AsyncIterator[WrongKeys]:
    keys = WrongKeys(lambda: None)
    yield keys
    keys.close()


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
    """Address and count of each line."""
    return [
        (record.address, record.count)
        for record in caplog.records
        if record.message == "wrong API key"
    ]


async def test_a_few_wrong_keys_are_refused_at_once_and_many_slowly(keys):
    assert await show(keys, "10.0.0.1", 10) < 0.1
    assert await show(keys, "10.0.0.1", 5) >= 0.9
    assert await show(keys, "10.0.0.2", 1) < 0.1


async def test_addresses_of_one_ipv6_network_count_as_one(keys):
    started = asyncio.get_running_loop().time()
    await asyncio.gather(*(keys.shown(f"2001:db8::{number:x}", yes) for number in range(15)))
    assert asyncio.get_running_loop().time() - started >= 0.9
    assert await show(keys, "2001:db8:0:1::1", 1) < 0.1


async def test_many_at_once_are_answered_no_faster_than_one_by_one(keys, monkeypatch):
    """150 of them were answered at 29 a second, since none waited longer than 5 s."""
    monkeypatch.setattr(wrong_keys, "_SPACING", 0.2 / 20)
    monkeypatch.setattr(wrong_keys, "_LONGEST", wrong_keys._LONGEST / 20)
    assert await show(keys, "10.0.0.1", 150) >= 140 * 0.2 / 20


async def test_no_answer_waits_longer_than_the_limit_and_further_ones_are_busy(keys, monkeypatch):
    monkeypatch.setattr(wrong_keys, "_LONGEST", 0.5)
    started = asyncio.get_running_loop().time()
    shown = (keys.shown("10.0.0.1", yes) for _ in range(200))
    outcomes = await asyncio.gather(*shown, return_exceptions=True)
    assert asyncio.get_running_loop().time() - started < 0.9
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 12 + [Busy] * 188
    assert await show(keys, "10.0.0.2", 1) < 0.1


async def test_few_wait_at_a_time_however_many_addresses_show_wrong_keys(keys, monkeypatch):
    monkeypatch.setattr(wrong_keys, "_MOST_WAITING", 20)
    for _ in range(10):
        await asyncio.gather(*(keys.shown(f"10.0.0.{number}", yes) for number in range(30)))
    shown = (keys.shown(f"10.0.0.{number}", yes) for number in range(30))
    outcomes = await asyncio.gather(*shown, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 20 + [Busy] * 10


async def test_nobody_waits_for_who_has_left(keys, monkeypatch):
    monkeypatch.setattr(wrong_keys, "_LOOK", 0.05)
    left = asyncio.get_running_loop().time() + 0.2
    await show(keys, "10.0.0.1", 10)
    shown = (
        keys.shown("10.0.0.1", lambda: asyncio.get_running_loop().time() < left) for _ in range(100)
    )
    async with asyncio.timeout(2):
        await asyncio.gather(*shown)


async def test_log_has_a_line_for_an_address_and_few_in_all(keys, caplog):
    with caplog.at_level(logging.WARNING):
        for number in range(300):
            await keys.shown(f"10.0.1.{number}", yes)
        await keys.shown("10.0.1.0", yes)
    assert lines(caplog) == [(f"10.0.1.{number}", 1) for number in range(10)]


async def test_no_wrong_key_goes_unlogged(keys, caplog, monkeypatch):
    """Each is in the count of a line, at the end of its minute or at the stop."""
    monkeypatch.setattr(wrong_keys, "_LOG_EVERY", 0.2)
    monkeypatch.setattr(wrong_keys, "_MOST_ADDRESSES", 50)

    def logged() -> int:
        return sum(record.count for record in caplog.records)

    with caplog.at_level(logging.WARNING):
        for _ in range(9):
            await keys.shown("10.0.0.1", yes)
        for number in range(100):
            await keys.shown(f"10.0.1.{number}", yes)
        assert logged() == 10
        async with asyncio.timeout(2):
            while logged() < 109:
                await asyncio.sleep(0.05)
        for _ in range(7):
            await keys.shown("10.0.0.2", yes)
        keys.close()
    assert lines(caplog)[-2:] == [("10.0.0.2", 1), ("10.0.0.2", 6)]
    assert logged() == 116


async def test_addresses_that_are_remembered_are_bounded(keys):
    for number in range(3000):
        await keys.shown(str(number), yes)
    assert len(keys._addresses) <= 1000


@pytest.mark.parametrize(
    "headers", [{"X-API-Key": "wr0ng-5ecret"}, {"Authorization": "Bearer wr0ng-5ecret"}]
)
async def test_wrong_key_is_counted_and_logged_and_a_valid_one_never_waits(private_bridge, headers):
    site = await asyncio.to_thread(private_bridge, API_KEYS=f"admin:{ADMIN}")
    async with aiohttp.ClientSession(site.url, headers={"Accept": "text/html"}) as session:

        async def status(path: str, shown: dict[str, str]) -> int:
            async with session.get(path, headers=shown) as answer:
                return answer.status

        started = asyncio.get_running_loop().time()
        wrong = [asyncio.create_task(status("/docs", headers)) for _ in range(20)]
        await asyncio.sleep(0)
        async with asyncio.timeout(1):
            assert await status("/api/operations", {"X-API-Key": ADMIN}) == 200
        assert await asyncio.gather(*wrong) == [401] * 20
        assert asyncio.get_running_loop().time() - started >= 2
        assert await status("/api/operations", {}) == 401
        async with session.get("/metrics", headers={"X-API-Key": ADMIN}) as metrics:
            assert "bridge_wrong_keys_total 20.0" in await metrics.text()
    line = await asyncio.to_thread(site.wait_for_line, "wrong API key")
    assert "address=127.0.0.1 count=1" in line
    await asyncio.to_thread(site.stop)
    assert "address=127.0.0.1 count=19" in site.output
    assert "wr0ng" not in site.output


async def test_wrong_keys_by_the_hundred_keep_few_connections_from_others(private_bridge):
    """Each kept its connection for 30 s: 4700 through a proxy, and valid keys got 429."""
    site = await asyncio.to_thread(private_bridge, API_KEYS=f"admin:{ADMIN}")
    connections = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(site.url, connector=connections) as session:

        async def ask(key: str) -> tuple[int, str | None]:
            async with session.get("/api/operations", headers={"X-API-Key": key}) as answer:
                return answer.status, answer.headers.get("Connection")

        wrong = [asyncio.create_task(ask(f"wr0ng-{number}")) for number in range(600)]
        async with asyncio.timeout(10):
            while sum(task.done() for task in wrong) < 400:
                await asyncio.sleep(0.05)
        assert await ask(ADMIN) == (200, None)
        # A connection on which an address need not wait would show thousands a second.
        kept = {(401, None), (429, "close")}
        assert {task.result() for task in wrong if task.done()} == kept
        for task in wrong:
            task.cancel()
        await asyncio.gather(*wrong, return_exceptions=True)
