"""The house stands: each module imports only from lower levels, and no cycle hides anywhere."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bridge"

# Lowest first; a folder counts as one module. A new module gets a place here: those of one level
# never import each other, and the transports stand on one.
LEVELS = (
    (
        "__init__",
        "acceptor",
        "deadlines",
        "effort",
        "errors",
        "lines",
        "logs",
        "pace",
        "systemd",
        "wire",
    ),
    ("connections", "framing"),
    ("settings", "models", "metrics", "sidecar", "bodies"),
    ("database", "envelope", "link", "replies", "sensors", "topics"),
    ("store", "commands", "calls", "client"),
    ("presets",),
    ("access", "once", "sequences"),
    ("once_mysql", "operations"),
    ("dispatch", "documents"),
    ("activity", "pages", "shedding"),
    ("console", "mcp"),
    ("http", "mqtt"),
    ("app", "parent"),
    ("workers", "init_db", "demo", "doctor"),
    ("cli",),
    ("__main__",),
)
LEVEL = {module: level for level, modules in enumerate(LEVELS) for module in modules}

# What a module that promises to be pure may not know of: the loop, sockets, drivers.
PURE = (
    "commands",
    "envelope",
    "errors",
    "models",
    "presets",
    "replies",
    "sensors",
    "topics",
    "wire",
)
OUTSIDE = {"asyncio", "socket", "aiomqtt", "paho", "aiohttp", "asyncmy", "uvloop"}

PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
MODULES = sorted({path.stem for path in PACKAGE.glob("*.py")} | set(PACKAGES))


def files_of(module: str) -> list[Path]:
    single = PACKAGE / f"{module}.py"
    return [single] if single.exists() else sorted((PACKAGE / module).rglob("*.py"))


def imports_in(file: Path) -> Iterator[tuple[str, bool]]:
    """The dotted name of each module that a file imports, and whether it is ours, below `bridge`.

    What comes from an `__init__` goes by the name of its package; bridge's own is `__init__`.
    """
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", False
        elif isinstance(node, ast.ImportFrom):
            start = file.relative_to(PACKAGE).parts[: -node.level]
            below = node.module.split(".") if node.module else []
            yield from ((our_module((*start, *below, alias.name)), True) for alias in node.names)


def our_module(parts: tuple[str, ...]) -> str:
    """The module that holds what goes by this name: the name itself, or what it begins with."""
    while parts:
        place = PACKAGE.joinpath(*parts)
        if place.with_suffix(".py").exists() or (place / "__init__.py").exists():
            return ".".join(parts)
        parts = parts[:-1]
    return "__init__"


def imports_of(module: str) -> set[tuple[str, bool]]:
    """The first part of each name that a module imports, and whether it is another of ours."""
    found = {
        (name.split(".")[0], is_ours)
        for file in files_of(module)
        for name, is_ours in imports_in(file)
    }
    return found - {(module, True)} if module in PACKAGES else found


def imports_within(package: str) -> dict[str, set[str]]:
    """What each module of a package imports of that same package, all by their dotted names."""
    return {
        our_module(file.relative_to(PACKAGE).with_suffix("").parts): {
            name for name, is_ours in imports_in(file) if is_ours and name.split(".")[0] == package
        }
        for file in files_of(package)
    }


def test_every_module_has_a_level():
    assert set(MODULES) <= set(LEVEL), "give the new module a place in LEVELS"


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_lower_levels(module):
    ours = {name for name, is_ours in imports_of(module) if is_ours}
    assert not {name for name in ours if LEVEL[name] >= LEVEL[module]}


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_inside_a_package_run_downhill(package):
    try:
        TopologicalSorter(imports_within(package)).prepare()
    except CycleError as error:
        _, cycle = error.args
        pytest.fail(f"a cycle: {' <- '.join(cycle)}")


@pytest.mark.parametrize("module", MODULES)
def test_module_is_imported_as_part_of_the_package(module):
    """An absolute `import bridge.x` would slip past the table."""
    assert ("bridge", False) not in imports_of(module)


@pytest.mark.parametrize("module", PURE)
def test_pure_module_knows_no_loop_and_no_driver(module):
    assert not {name for name, is_ours in imports_of(module) if not is_ours} & OUTSIDE


def users_of(library: str) -> set[str]:
    return {module for module in MODULES if (library, False) in imports_of(module)}


def test_only_one_module_knows_the_database_driver_and_one_the_mqtt_client_below_aiomqtt():
    assert users_of("asyncmy") == {"database"}
    assert users_of("paho") == {"link"}


def test_a_wheel_would_hold_every_package():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {file.parent.relative_to(PACKAGE.parent) for file in PACKAGE.rglob("*.py")}
    packages = {".".join(folder.parts) for folder in folders}
    assert set(project["tool"]["setuptools"]["packages"]) == packages


def test_the_requester_needs_no_database_package():
    reached, waiting = set(), ["client"]
    while waiting:
        module = waiting.pop()
        reached.add(module)
        waiting += [name for name, is_ours in imports_of(module) if is_ours and name not in reached]
    assert "database" not in reached
