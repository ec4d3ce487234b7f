"""The house stands: each module imports only from lower levels, and no cycle hides anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bridge"

# Lowest first; a folder counts as one module. A new module gets a place here: those of one level
# never import each other, and the transports stand on one.
LEVELS = (
    ("__init__", "errors", "deadlines", "lines", "logs", "sidecar", "systemd", "wire"),
    ("settings", "models", "metrics"),
    ("database", "envelope", "link", "replies", "sensors", "topics"),
    ("store", "commands", "calls", "client"),
    ("access", "once", "sequences"),
    ("once_mysql", "operations"),
    ("dispatch", "documents"),
    ("activity",),
    ("console", "mcp"),
    ("http", "mqtt"),
    ("app",),
    ("workers", "init_db", "demo", "doctor"),
    ("cli",),
    ("__main__",),
)
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}

# What a module that promises to be pure may not know of: the loop, sockets, drivers.
PURE = ("commands", "envelope", "errors", "models", "replies", "sensors", "topics", "wire")
OUTSIDE = {"asyncio", "socket", "aiomqtt", "paho", "aiohttp", "asyncmy", "uvloop"}

MODULES = sorted(
    {path.stem for path in PACKAGE.glob("*.py")}
    | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
)


def imports_of(module: str) -> Iterator[tuple[str, bool]]:
    """The first part of each name that a module imports, and whether it is another of ours."""
    single = PACKAGE / f"{module}.py"
    for path in [single] if single.exists() else (PACKAGE / module).rglob("*.py"):
        up = len(path.relative_to(PACKAGE).parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((alias.name.split(".")[0], False) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield (node.module or "").split(".")[0], False
            elif isinstance(node, ast.ImportFrom) and node.level == up:
                names = [node.module] if node.module else [alias.name for alias in node.names]
                for name in (name.split(".")[0] for name in names):
                    yield (name if name in MODULES else "__init__"), True


def test_every_module_has_a_level():
    assert set(MODULES) <= set(LEVEL), "give the new module a place in LEVELS"


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_lower_levels(module):
    ours = {name for name, is_ours in imports_of(module) if is_ours}
    assert not {name for name in ours if LEVEL[name] >= LEVEL[module]}


@pytest.mark.parametrize("module", MODULES)
def test_module_is_imported_as_part_of_the_package(module):
    """An absolute `import bridge.x` would slip past the table."""
    assert ("bridge", False) not in set(imports_of(module))


@pytest.mark.parametrize("module", PURE)
def test_pure_module_knows_no_loop_and_no_driver(module):
    assert not {name for name, is_ours in imports_of(module) if not is_ours} & OUTSIDE


def users_of(library: str) -> set[str]:
    return {module for module in MODULES if (library, False) in set(imports_of(module))}


def test_only_one_module_knows_the_database_driver_and_one_the_mqtt_client_below_aiomqtt():
    assert users_of("asyncmy") == {"database"}
    assert users_of("paho") == {"link"}


def test_the_requester_needs_no_database_package():
    reached, waiting = set(), ["client"]
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting += [name for name, is_ours in imports_of(module) if is_ours and name not in reached]
    assert "database" not in reached
