#!/usr/bin/env python3
"""Start the bridge; `python run.py --help` tells what else it does."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  said in one line, not in a SyntaxError
    sys.exit(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}")

try:
    from bridge.cli import main
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] == "bridge":
        raise
    sys.exit(
        f"缺少软件包 {missing.name}，请运行 / missing package, run: "
        "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && "
        ".venv/bin/python run.py"
    )

if __name__ == "__main__":
    sys.exit(main())
