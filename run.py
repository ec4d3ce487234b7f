#!/usr/bin/env python3
"""Start the bridge; `python run.py --help` tells what else it does."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  said in one line, not in a SyntaxError
    sys.exit(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}")

try:
    from bridge.cli import main
except ModuleNotFoundError as missing:
    sys.exit(
        f"缺少软件包 {missing.name}，请先执行 / the package {missing.name} is missing; run: "
        f"{sys.executable} -m pip install -r requirements.txt"
    )

if __name__ == "__main__":
    sys.exit(main())
