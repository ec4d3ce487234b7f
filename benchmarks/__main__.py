"""``python -m benchmarks``: start everything, measure, print the report. See README.md."""

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from benchmarks import contenders, processes, report
from benchmarks.contenders import Lab
from benchmarks.load import ControlCounter, LoadError, compile_tools
from benchmarks.profile import profile
from benchmarks.rows import (
    FOOTPRINT_ROW,
    Footprint,
    Measured,
    Plan,
    all_rows,
    run_footprints,
    run_row,
)
from benchmarks.servers import MariaDb, Mosquitto, StartError

QUICK = Plan(seconds=0.5, warm_up=0.2, rounds=1, grown_devices=100_000)


# What an idle machine uses of its cores.
QUIET = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 when an answer was wrong or something did not start."""
    # So that a stopped run stops its servers too.
    signal.signal(signal.SIGTERM, _leave)
    options = _parse(arguments)
    plan = _plan(options)
    try:
        others = processes.busy_cores()
        if others > QUIET:
            print(f"something else uses {others:.1f} cores: figures will be off", file=sys.stderr)
        if options.profile:
            print(_profile())
            return 0
        measured, footprints, database = _measure(plan, set(options.rows))
    except (StartError, LoadError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    text = report.markdown(measured, footprints, plan, database, others)
    print(text)
    if options.out:
        _write(options.out, text, measured, footprints)
    return 1 if any(one.faults for one in measured) else 0


@contextmanager
def _lab() -> Iterator[tuple[Lab, ControlCounter]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        compile_tools(folder)
        broker = Mosquitto(folder)
        stack.callback(broker.stop)
        database = MariaDb(folder)
        stack.callback(database.stop)
        lab = Lab(folder, folder, broker, database)
        counter = ControlCounter(lab)
        stack.callback(counter.stop)
        yield lab, counter


def _profile() -> str:
    with _lab() as (lab, counter):
        return profile(lab, counter)


def _measure(plan: Plan, chosen: set[str]) -> tuple[list[Measured], list[Footprint], str]:
    measured: list[Measured] = []
    footprints: list[Footprint] = []
    with _lab() as (lab, counter):
        for row in all_rows(plan):
            if not chosen or row.name in chosen:
                measured.extend(run_row(row, plan, lab, counter))
        if not chosen or FOOTPRINT_ROW in chosen:
            footprints = run_footprints(plan, lab, counter)
        return measured, footprints, lab.database.version()


def _plan(options: argparse.Namespace) -> Plan:
    base = QUICK if options.quick else Plan()
    return Plan(
        seconds=options.seconds or base.seconds,
        warm_up=base.warm_up,
        rounds=options.rounds or base.rounds,
        grown_devices=base.grown_devices,
        without=frozenset(options.without),
    )


def _write(
    out: Path, text: str, measured: Sequence[Measured], footprints: Sequence[Footprint]
) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    raw = {
        "measured": [asdict(one) for one in measured],
        "footprints": [asdict(one) for one in footprints],
    }
    out.with_suffix(".json").write_text(json.dumps(raw, ensure_ascii=False, indent=1) + "\n")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    rows = [row.name for row in all_rows(Plan())] + [FOOTPRINT_ROW]
    names = [contender.name for contender in contenders.ALL]
    parser = argparse.ArgumentParser(
        prog="benchmarks/run",
        description="Measure the bridge beside what a user would otherwise pick, "
        "and beside the limit of this machine.",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one short round: does it all work? Its figures mean little",
    )
    parser.add_argument(
        "--rows",
        nargs="+",
        default=[],
        metavar="ROW",
        choices=rows,
        help=f"measure only these rows: {', '.join(rows)}",
    )
    parser.add_argument(
        "--without",
        nargs="+",
        default=[],
        metavar="CONTENDER",
        choices=names,
        help=f"leave these out: {', '.join(names)}",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="show where the time of a request goes in the bridge, instead of measuring",
    )
    parser.add_argument("--seconds", type=_positive, help="measured time of a case (3)")
    parser.add_argument("--rounds", type=_positive, help="how often each is measured (3)")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.md",
        help="write the report there, and every round's figures to FILE.json",
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(143)


if __name__ == "__main__":
    sys.exit(main())
