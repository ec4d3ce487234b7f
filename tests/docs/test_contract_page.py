"""docs/contract.md is what the code says, and the API documents agree with it."""

from __future__ import annotations

import json
import re

import pytest

from docs.generate_contract import BLOCKS as TABLES
from docs.generate_contract import refreshed
from tests.lab.bridge import PROJECT

PAGE = (PROJECT / "docs" / "contract.md").read_text(encoding="utf-8")
BLOCKS = {"docs/contract.md": {"bodies"}}
AGAIN = "python -m docs.generate_contract docs/contract.md makes it anew"


def test_tables_are_those_that_the_code_makes():
    assert refreshed(PAGE) == PAGE, AGAIN


def test_every_table_is_on_the_page_once():
    assert sorted(re.findall(r"<!-- made: ([\w-]+) -->", PAGE)) == sorted(TABLES)
    assert PAGE.count("<!-- end -->") == len(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_table_has_as_many_cells_in_each_row(name):
    rows = TABLES[name]().splitlines()
    assert len(rows) > 2
    cells = {len(re.findall(r"(?<!\\)\|", row)) for row in rows}
    assert len(cells) == 1


def test_table_that_went_stale_is_made_anew_and_the_rest_left_alone():
    stale = PAGE.replace("| `control` |", "| `contrl` |")
    assert stale != PAGE
    assert refreshed(stale) == PAGE


def test_page_that_names_an_unknown_table_is_refused():
    with pytest.raises(KeyError):
        refreshed("<!-- made: nothing -->\n<!-- end -->")


def test_bodies_on_the_page_are_json():
    for block in re.findall(r"^```json\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL):
        assert all("code" in json.loads(line) for line in block.splitlines())
