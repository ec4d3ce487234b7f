"""`.env.example` and the READMEs' tables hold every setting, with its true default."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

from bridge.settings import SECRET_NAMES, Settings, load
from tests.docs.pages import snippet
from tests.lab.bridge import PROJECT
from tests.test_settings import DOCUMENTED

EXAMPLE = (PROJECT / ".env.example").read_text(encoding="utf-8")
READMES = ("README.md", "docs/README.zh-CN.md")
BLOCKS = {page: {"env"} for page in READMES}
_SETTING = re.compile(r"^(?:# )?([A-Z][A-Z_]+)=(.*)$", re.MULTILINE)
_ROW = re.compile(r"^\| `([A-Z_]+)` \| (?:`(.*?)`|–) \| (.+) \|$", re.MULTILINE)
# What the documented block shows in place of these is an example.
SHOWN_BY_EXAMPLE = {"DB_PASSWORD", "DATABASE_URL"}
# The default is made of the host's name and the port.
NAMED_BY_HOST = "MQTT_INSTANCE"


def defaults() -> dict[str, str]:
    """Each setting's default as it would be written in `.env`."""
    return {name.upper(): _written(field.default) for name, field in Settings.model_fields.items()}


def _written(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return "" if "SecretStr" in type(value).__name__ else str(value)


def test_documented_block_stands_at_the_top_unchanged():
    assert EXAMPLE.startswith(DOCUMENTED)


def test_every_setting_is_there_once_with_its_default_and_nothing_else():
    ours = _SETTING.findall(EXAMPLE.removeprefix(DOCUMENTED))
    documented = dict(reversed(_SETTING.findall(DOCUMENTED)))
    told = {**documented, **dict(ours)}
    assert len(ours) == len(dict(ours))
    assert not documented.keys() & dict(ours).keys()
    expected = defaults()
    assert told.keys() == expected.keys()
    for name in expected.keys() - SHOWN_BY_EXAMPLE:
        assert (name, told[name]) == (name, expected[name])


def test_every_setting_of_ours_has_a_comment():
    lines = EXAMPLE.removeprefix(DOCUMENTED).splitlines()
    for before, line in pairwise(lines):
        if _SETTING.match(line):
            # Two that belong together share one.
            assert before.startswith("# "), line


def test_it_is_accepted_as_it_is_and_with_every_line_switched_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in defaults():
        monkeypatch.delenv(name, raising=False)
    (tmp_path / ".env").write_text(EXAMPLE, encoding="utf-8")
    shown = load()
    ours = EXAMPLE.removeprefix(DOCUMENTED)
    switched_on = _SETTING.sub(lambda found: f"{found[1]}={found[2]}", ours)
    (tmp_path / ".env").write_text(DOCUMENTED + switched_on, encoding="utf-8")
    assert load() == shown


def test_secrets_that_may_come_from_files_are_told():
    by_file = {f"{name}_FILE" for name in SECRET_NAMES} - set(defaults())
    told = EXAMPLE.removeprefix(DOCUMENTED)
    assert not [name for name in by_file if name not in told]


@pytest.mark.parametrize("page", READMES)
def test_readme_shows_the_documented_lines_of_it(page):
    documented = [line for line in DOCUMENTED.splitlines() if line and not line.startswith("#")]
    assert snippet(page, "env").split() == documented


@pytest.mark.parametrize("page", READMES)
def test_readme_table_holds_every_setting_with_its_default_and_nothing_else(page):
    text = (PROJECT / page).read_text(encoding="utf-8")
    rows = _ROW.findall(text)
    expected = defaults() | {NAMED_BY_HOST: "<host>-<SERVICE_PORT>"}
    assert [name for name, _, _ in rows] == list(expected)
    assert {name: default for name, default, _ in rows} == expected
