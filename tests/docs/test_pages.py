"""The snippets of the pages that have no test file of their own, and what the pages name."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import datetime
from pathlib import Path

import aiohttp
import pytest

from bridge.http.authentication import read_keys
from bridge.settings import Settings, load
from tests.docs.pages import PAGES, blocks_of, snippet
from tests.lab.bridge import PROJECT
from tests.lab.commands import run
from tests.lab.platform import BOARD_A, BOARD_B
from tests.lab.servers import program

LLM_PAGES = ("docs/llm-platforms.md", "docs/llm-platforms.zh-CN.md")
SECURITY_PAGES = ("docs/security.md", "docs/security.zh-CN.md")
BLOCKS = {
    "CONTRIBUTING.md": {"checks", "pytest", "rooms"},
    "docs/operating.md": {"log"},
    "docs/operating.zh-CN.md": {"log"},
    "docs/scaling.md": {"workers", "machines"},
    **{page: {"env", "keys", "curl"} for page in LLM_PAGES},
    **{page: {"keys"} for page in SECURITY_PAGES},
}
TWINS = {page.replace(".zh-CN", ""): page for page in PAGES if ".zh-CN" in page} | {
    "README.md": "docs/README.zh-CN.md"
}
del TWINS["docs/README.md"]


def settings_in(page: str, name: str) -> dict[str, str]:
    """The lines of an `.env` on the page; each names a setting that there is."""
    values = dict(line.split("=", 1) for line in snippet(page, name).splitlines())
    assert {written.lower() for written in values} <= Settings.model_fields.keys()
    return values


# Settings and keys


@pytest.mark.parametrize("name", ["workers", "machines"])
def test_settings_for_several_are_accepted(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = settings_in("docs/scaling.md", name)
    for setting in Settings.model_fields:
        monkeypatch.delenv(setting.upper(), raising=False)
    (tmp_path / ".env").write_text(snippet("docs/scaling.md", name), encoding="utf-8")
    read = load()
    assert {key: str(getattr(read, key.lower())) for key in values} == values


@pytest.mark.parametrize("page", SECURITY_PAGES)
def test_keys_with_limits_are_what_the_bridge_reads(page, tmp_path):
    file = keys_file(page, tmp_path)
    grants = {grant.name: grant for grant in read_keys(Settings(api_keys_file=file)).values()}
    assert grants.keys() == {"reader", "class-3"}
    assert grants["reader"].operations == {"sensor-data", "device"}
    assert grants["class-3"].devices == {BOARD_A, BOARD_B}


def keys_file(page: str, folder: Path) -> Path:
    """The page's keys, with whole UUIDs in place of those that it shortens."""
    file = folder / "keys"
    text = snippet(page, "keys").replace("a0000000-…", BOARD_A).replace("b0000000-…", BOARD_B)
    assert "…" not in text
    file.write_text(text, encoding="utf-8")
    return file


# What a platform fetches


def test_both_pages_on_platforms_have_the_same_snippets():
    english, chinese = ([block[2:] for block in blocks_of(page)] for page in LLM_PAGES)
    assert english == chinese


def test_platform_fetches_the_document_with_its_key(private_bridge, tmp_path):
    page = LLM_PAGES[0]
    chosen = settings_in(page, "env")
    file = keys_file(page, tmp_path)
    bridge = private_bridge(**(chosen | {"API_KEYS_FILE": str(file)}))
    command = snippet(page, "curl").replace(chosen["PUBLIC_URL"], f"-sS {bridge.url}")
    assert bridge.url in command
    fetched = run(program("bash"), "-eu", "-c", command, environment={"NO_PROXY": "*"})
    document = json.loads(fetched.stdout)
    assert document["openapi"].startswith("3.0.")
    assert document["servers"] == [{"url": chosen["PUBLIC_URL"]}]


# The log


async def test_log_line_of_the_page_is_the_one_that_is_written(private_bridge, board):
    shown = json.loads(snippet("docs/operating.md", "log"))
    bridge = await asyncio.to_thread(private_bridge, LOG_FORMAT="json")
    await board(BOARD_A, broker=bridge.broker)
    body = {"device_uuid": BOARD_A, **json.loads(shown["asked"]), "request_id": shown["id"]}
    async with (
        aiohttp.ClientSession(bridge.url) as client,
        client.post("/api/control", json=body) as response,
    ):
        assert response.status == 200
    await asyncio.to_thread(bridge.wait_for_line, '"message":"command"')
    (line,) = [line for line in bridge.output.splitlines() if '"message":"command"' in line]
    written = json.loads(line)
    for logged in (shown, written):
        assert datetime.fromisoformat(logged.pop("time")).tzinfo is not None
    assert written == shown
    assert snippet("docs/operating.zh-CN.md", "log") == snippet("docs/operating.md", "log")


# For contributors


def test_checks_that_contributors_run_are_those_of_ci():
    ci = (PROJECT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert [line for line in snippet("CONTRIBUTING.md", "checks").splitlines() if line] == [
        line for line in ci if line.startswith(("./tests/run --setup-only", ".venv/"))
    ]


@pytest.mark.parametrize("command", snippet("CONTRIBUTING.md", "pytest").splitlines())
def test_command_for_one_test_names_tests(command):
    """It is not run: it would run tests that are run anyway."""
    python, option, pytest_itself, path, *options = command.split()
    assert (python, option, pytest_itself) == (".venv/bin/python", "-m", "pytest")
    files = [PROJECT / path] if path.endswith(".py") else [*(PROJECT / path).glob("test_*.py")]
    word = options[options.index("-k") + 1] if "-k" in options else ""
    source = "".join(file.read_text(encoding="utf-8") for file in files)
    assert re.search(rf"def test_\w*{word}", source)


def test_rooms_are_the_packages_that_there_are():
    told = re.findall(r"─ (\w+(?:/|\.py)) ", snippet("CONTRIBUTING.md", "rooms"))
    packages = {f"{room.parent.name}/" for room in (PROJECT / "bridge").glob("*/__init__.py")}
    modules = {file.name for file in (PROJECT / "bridge").glob("*.py")}
    small = {"__init__.py", "__main__.py", "arguments.py"}
    assert set(told) == packages | modules - small


WALKS = re.findall(
    r"^\| (?:`(\S+\.py)`)? *\| `([\w.]+)` \|", PAGES["CONTRIBUTING.md"], re.MULTILINE
)


def test_walks_lead_through_functions_that_there_are():
    assert len(WALKS) > 15
    source = ""
    for file, function in WALKS:
        if file:
            source = (PROJECT / "bridge" / file).read_text(encoding="utf-8")
        owner, _, name = function.rpartition(".")
        assert re.search(rf"(def|class) {name}\b", source), (file, function)
        assert not owner or f"class {owner}" in source, (file, function)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_are_there(page):
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|sh|yaml|yml|json|conf))`", PAGES[page]))
    elsewhere = {".vscode/mcp.json", ".cursor/mcp.json"}
    roots = (PROJECT, PROJECT / "bridge", (PROJECT / page).parent)
    missing = [name for name in named if not any((root / name).exists() for root in roots)]
    assert set(missing) <= elsewhere


# The pages among each other


def test_index_leads_to_every_page():
    folder = PROJECT / "docs"
    linked = {
        (folder / target).resolve().relative_to(PROJECT)
        for target in re.findall(r"\]\(([^)#]+)", PAGES["docs/index.md"])
    }
    linked |= {path / "README.md" for path in linked}
    assert [page for page in PAGES if Path(page) not in linked | {Path("docs/index.md")}] == []


@pytest.mark.parametrize(("english", "chinese"), TWINS.items())
def test_page_and_its_chinese_twin_have_the_same_parts(english, chinese):
    def outline(page: str) -> list[str]:
        """Headings, snippets and rows of tables, by their kind alone."""
        prose = re.sub(r"^ *```.*?^ *```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
        return re.findall(r"^(#+ |\| |<!-- [\w: -]+ -->$)", prose, re.MULTILINE)

    assert outline(chinese) == outline(english)
