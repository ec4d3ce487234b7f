#!/usr/bin/env python3
"""Start the bridge; `python run.py --help` tells what else it does."""

import os
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036  said in one line, not in a SyntaxError
    sys.exit(f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}")


def installation() -> str:
    """The line that installs the packages; outside of a virtual environment it makes one first.

    Debian's and Homebrew's own Python refuse to install packages anywhere else.
    """
    requirements = str(Path(__file__).with_name("requirements.txt"))
    install = ("-m", "pip", "install", "-r", requirements)
    if sys.prefix != sys.base_prefix:
        return shlex.join((sys.executable, *install))
    python = str(Path(".venv", "Scripts" if os.name == "nt" else "bin", "python"))
    steps = [(sys.executable, "-m", "venv", ".venv"), (python, *install), (python, *sys.argv)]
    if find_spec("ensurepip") is None:
        steps.insert(0, ("sudo", "apt", "install", "python3-venv"))
    return " && ".join(map(shlex.join, steps))


try:
    from bridge.cli import main
except ModuleNotFoundError as missing:
    sys.exit(
        f"缺少软件包 {missing.name}，请先执行 / the package {missing.name} is missing; run: "
        + installation()
    )

if __name__ == "__main__":
    sys.exit(main())
