"""`tests/clusters/run`: see there."""

from __future__ import annotations

import asyncio
import sys
import time
from functools import partial

from tests.clusters import brokers
from tests.clusters.scenarios import (
    Findings,
    broker_node_dies,
    database_node_dies,
    rolling_restart,
)
from tests.clusters.table import BROKERS, row
from tests.lab.mariadb import MariaDb
from tests.lab.platform import seed_classroom

QUICK_EVICTION = (
    "evs.keepalive_period=PT0.3S",
    "evs.inactive_check_period=PT0.3S",
    "evs.suspect_timeout=PT1S",
    "evs.inactive_timeout=PT3S",
)


async def table(findings: Findings) -> None:
    print("| broker | MQTT 5 | MQTT 3.1.1 |\n|---|---|---|", flush=True)
    with MariaDb() as database:
        seed_classroom(database)
        for name in BROKERS:
            print(await row(name, database, findings), flush=True)


async def nats(findings: Findings) -> None:
    print("NATS, 3 nodes:", await broker_node_dies(partial(brokers.nats, 3), "3.1.1", findings))


async def rabbitmq(findings: Findings) -> None:
    made = partial(brokers.rabbitmq, 3)
    print("RabbitMQ, 3 nodes:", await broker_node_dies(made, "3.1.1", findings))


async def ejabberd(findings: Findings) -> None:
    made = partial(brokers.ejabberd, 2)
    print("ejabberd, 2 nodes:", await broker_node_dies(made, "5", findings))


async def galera(findings: Findings) -> None:
    print("Galera, 3 nodes, as shipped:", await database_node_dies(findings), flush=True)
    quick = await database_node_dies(findings, *QUICK_EVICTION)
    print("Galera, 3 nodes, evs.suspect_timeout=PT1S:", quick)


async def rolling(findings: Findings) -> None:
    print("two bridges behind HAProxy:", await rolling_restart(findings))


SCENARIOS = (table, nats, rabbitmq, ejabberd, galera, rolling)


async def main(names: list[str]) -> int:
    known = {scenario.__name__: scenario for scenario in SCENARIOS}
    if unknown := set(names) - known.keys():
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return 2
    findings = Findings()
    for name in names or known:
        started = time.monotonic()
        await known[name](findings)
        print(f"({name}: {time.monotonic() - started:.0f} s)", flush=True)
    for wrong in findings.wrong:
        print(f"WRONG: {wrong}")
    return 1 if findings.wrong else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1:])))
