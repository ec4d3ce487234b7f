"""The long form: break things for minutes, and print what came of it."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Awaitable, Callable

import uvloop

from tests.chaos.chaos import chaos
from tests.chaos.crowd import idle_connections, question_marks
from tests.chaos.drain import drain
from tests.chaos.findings import Findings
from tests.chaos.flood import (
    AS_IT_COMES,
    REQUESTS,
    SAMPLE,
    flood,
    flood_behind_a_stalled_request,
    highest_rate,
)
from tests.chaos.hostile import hostile
from tests.chaos.limits import limits
from tests.chaos.overload import closed_loop, open_loop, stopped_database
from tests.chaos.soak import soak

Run = Callable[[], Awaitable[Findings]]


def main() -> int:
    """Run what the command line asks for; 1 if a promise was broken."""
    options = _options()
    runs = _runs(options)
    broken = False
    for name in options.what or list(runs):
        for title, run in runs[name]:
            if options.only.lower() not in title.lower():
                continue
            print(f"\n{title}", flush=True)
            started = time.monotonic()
            # A load generator is to cost as little as it can.
            findings = uvloop.run(_run(run))
            _print(findings, time.monotonic() - started)
            broken = broken or bool(findings.broken)
    return 1 if broken else 0


async def _run(run: Run) -> Findings:
    return await run()


def _runs(options: argparse.Namespace) -> dict[str, list[tuple[str, Run]]]:
    rounds, seed = options.rounds, options.seed
    return {
        "chaos": [
            (
                f"Chaos: {rounds or 20} faults under load, {bridges} bridge(s)",
                lambda bridges=bridges: chaos(  # type: ignore[misc]
                    rounds=rounds or 20, bridges=bridges, seed=seed
                ),
            )
            for bridges in (1, 2)
        ],
        "drain": [
            (
                f"Drain: {rounds or 20} times SIGTERM under load",
                lambda: drain(rounds=rounds or 20, seed=seed),
            )
        ],
        "overload": _overload_runs(options.seconds),
        "hostile": [
            (
                f"Hostile: {options.messages} messages",
                lambda: hostile(messages=options.messages, seed=seed),
            )
        ],
        "soak": [
            (
                f"Soak: {options.requests} mixed requests",
                lambda: soak(requests=options.requests),
            )
        ],
        "limits": [("Limits: what no longer holds, and without what", limits)],
    }


def _overload_runs(seconds: float | None) -> list[tuple[str, Run]]:
    brokers = {"with the sample limits": SAMPLE, "as it comes": AS_IT_COMES}
    told_only = [("sensor-data", SAMPLE), *((operation, AS_IT_COMES) for operation in REQUESTS)]
    names = {lines: name for name, lines in brokers.items()}
    return [
        ("Overload over HTTP, closed loop", lambda: closed_loop(seconds=seconds or 30)),
        ("Overload over HTTP, open loop", lambda: open_loop(seconds=seconds or 30)),
        (
            "Overload over HTTP, the database stopped",
            lambda: stopped_database(seconds=seconds or 10),
        ),
        *(
            (
                f"Flood over MQTT: {operation} at twice the capacity, Mosquitto {names[SAMPLE]}",
                lambda operation=operation: flood(operation=operation, seconds=seconds or 30),
            )
            for operation in ("control", "batch")
        ),
        *(
            (
                f"Highest rate over MQTT: {operation}, Mosquitto {names[lines]}",
                lambda operation=operation, lines=lines: highest_rate(
                    operation=operation, broker_lines=lines, seconds=seconds or 10
                ),
            )
            for operation, lines in told_only
        ),
        *(
            (
                f"Flood behind a stalled request, Mosquitto {name}",
                lambda lines=lines: flood_behind_a_stalled_request(broker_lines=lines),
            )
            for name, lines in brokers.items()
        ),
        ("60,000 question marks while the bridge is full", question_marks),
        ("4,300 idle or half-sent connections", idle_connections),
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests/chaos/run", description=__doc__)
    # argparse checks an empty list of positionals against `choices` too, and refuses it.
    parser.add_argument(
        "what",
        nargs="*",
        metavar="what",
        help="chaos, drain, overload, hostile, soak, limits: all of them",
    )
    parser.add_argument("--only", default="", help="those whose title contains this text")
    parser.add_argument("--rounds", type=int, help="of chaos and drain (20)")
    parser.add_argument("--seconds", type=float, help="of each overload (10 or 30)")
    parser.add_argument("--messages", type=int, default=100_000, help="hostile ones (100000)")
    parser.add_argument("--requests", type=int, default=500_000, help="of the soak (500000)")
    parser.add_argument("--seed", type=int, help="repeat the choices of an earlier run")
    options = parser.parse_args()
    unknown = set(options.what) - {"chaos", "drain", "overload", "hostile", "soak", "limits"}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    return options


def _print(findings: Findings, seconds: float) -> None:
    for name, value in findings.figures.items():
        print(f"  {name}: {value}")
    for promise in findings.broken:
        print(f"  BROKEN  {promise}")
    print(f"  {'BROKEN' if findings.broken else 'all promises held'}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
