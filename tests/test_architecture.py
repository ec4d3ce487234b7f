"""The rooms of `bridge/`, who may import whom, and who may reach below a library."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "bridge"

# From the ground up: each imports only from those before it.
ROOMS = (
    "errors",
    "settings",
    "observability",
    "devices",
    "core",
    "database",
    "link",
    "client",
    "apidocs",
    "mqtt",
    "http",
    "mcp",
    "doctor",
    "app",
    "demo",
    "arguments",
    "cli",
    "__main__",
)
# What a room must not import although it stands below.
NEVER = {
    "client": {"core", "database", "apidocs", "mqtt", "http"},
    "link": {"core", "database"},
    "http": {"mqtt", "database"},
    "mqtt": {"apidocs", "database"},
}
# Who may use what lies below the public face of a library.
BELOW = {
    "asyncmy": {"database/pool.py", "database/connections.py"},
    "paho": {"link/paho_adapter.py", "link/connection.py"},
}
AIOHTTP_SHIM = "http/server.py"
PURE = ("devices",)
IMPURE = {"asyncio", "aiohttp", "aiomqtt", "asyncmy", "paho", "socket", "threading"}

Import = tuple[str, ...]


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(file: Path) -> Import:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def is_module(parts: Import) -> bool:
    place = PACKAGE.joinpath(*parts)
    return place.with_suffix(".py").exists() or (place / "__init__.py").exists()


def ours_in(file: Path) -> Iterator[Import]:
    """The modules of ours that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = file.relative_to(PACKAGE).parts[: -node.level]
            base = (*folder, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                named = (*base, alias.name)
                yield named if is_module(named) else base


def foreign_in(file: Path) -> Iterator[str]:
    """The dotted names of other packages that a file imports."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: Import) -> str:
    return module[0] if module else "__init__"


def test_house_has_these_rooms_and_no_others():
    there = {entry.stem for entry in PACKAGE.iterdir() if entry.name != "__pycache__"}
    assert there - {"__init__", "py"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_room_imports_only_from_rooms_below_it(room):
    below = set(ROOMS[: ROOMS.index(room)]) - NEVER.get(room, set())
    used = {
        room_of(module)
        for file in files()
        if room_of(name_of(file)) == room
        for module in ours_in(file)
    }
    assert used - {room, "__init__"} <= below


def test_imports_have_no_cycle():
    graph = {name_of(file): set(ours_in(file)) - {name_of(file)} for file in files()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a cycle: {error.args[1]}")


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_only_a_shim_reaches_below_a_library(file):
    place = file.relative_to(PACKAGE).as_posix()
    for name in foreign_in(file):
        library = name.split(".")[0]
        assert place in BELOW.get(library, {place}), name
        if library == "aiohttp" and place != AIOHTTP_SHIM:
            assert name in ("aiohttp", "aiohttp.web", "aiohttp.hdrs")
        assert library != "bridge", "imports inside the package are relative"


@pytest.mark.parametrize("room", PURE)
def test_pure_room_knows_no_loop_and_no_driver(room):
    used = {
        name.split(".")[0]
        for file in files()
        if room_of(name_of(file)) == room
        for name in foreign_in(file)
    }
    assert not used & IMPURE


def test_every_folder_with_code_is_a_package():
    """Setuptools finds packages by their `__init__.py`: the wheel would lack the others."""
    assert not [file for file in files() if not (file.parent / "__init__.py").exists()]


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_file_and_its_functions_are_short(file):
    source = file.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 350
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    lengths = {
        node.name: (node.end_lineno or 0) - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, functions)
    }
    assert {name: length for name, length in lengths.items() if length > 50} == {}
