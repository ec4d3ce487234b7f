"""Wrong API keys: counted, told in the log, and answered slowly; a valid key never waits."""

from __future__ import annotations

import asyncio
import logging

import aiohttp
import pytest

from bridge.http import wrong_keys
from bridge.http.wrong_keys import WrongKeys

ADMIN = "admin-5ecret"


async def show(keys: WrongKeys, address: str, times: int) -> float:
    """The seconds that the last of so many wrong keys, shown together, waited."""
    started = asyncio.get_running_loop().time()
    await asyncio.gather(*(keys.shown(address) for _ in range(times)))
    return asyncio.get_running_loop().time() - started


async def test_a_few_wrong_keys_are_refused_at_once_and_many_slowly():
    keys = WrongKeys(lambda: None)
    assert await show(keys, "10.0.0.1", 10) < 0.1
    assert await show(keys, "10.0.0.1", 5) >= 0.9
    assert await show(keys, "10.0.0.2", 1) < 0.1


async def test_addresses_of_one_ipv6_network_count_as_one():
    keys = WrongKeys(lambda: None)
    started = asyncio.get_running_loop().time()
    await asyncio.gather(*(keys.shown(f"2001:db8::{number:x}") for number in range(15)))
    assert asyncio.get_running_loop().time() - started >= 0.9
    assert await show(keys, "2001:db8:0:1::1", 1) < 0.1


async def test_no_answer_waits_longer_than_the_limit(monkeypatch):
    monkeypatch.setattr(wrong_keys, "_LONGEST", 0.3)
    assert await show(WrongKeys(lambda: None), "10.0.0.1", 200) < 1.0


async def test_log_has_a_line_for_an_address_and_few_in_all(caplog):
    keys = WrongKeys(lambda: None)
    with caplog.at_level(logging.WARNING):
        for number in range(300):
            await keys.shown(f"10.0.1.{number}")
        await keys.shown("10.0.1.0")
    lines = [record for record in caplog.records if record.message == "wrong API key"]
    assert len(lines) == 10
    assert (lines[0].address, lines[0].count) == ("10.0.1.0", 1)


async def test_addresses_that_are_remembered_are_bounded():
    keys = WrongKeys(lambda: None)
    for number in range(3000):
        await keys.shown(str(number))
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

        wrong = [asyncio.create_task(status("/docs", headers)) for _ in range(20)]
        await asyncio.sleep(0)
        async with asyncio.timeout(1):
            assert await status("/api/operations", {"X-API-Key": ADMIN}) == 200
        assert await asyncio.gather(*wrong) == [401] * 20
        assert await status("/api/operations", {}) == 401
        async with session.get("/metrics", headers={"X-API-Key": ADMIN}) as metrics:
            assert "bridge_wrong_keys_total 20.0" in await metrics.text()
    line = await asyncio.to_thread(site.wait_for_line, "wrong API key")
    assert "address=127.0.0.1 count=1" in line
    assert "wr0ng" not in site.output
