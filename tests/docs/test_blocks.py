"""Each fenced block of each page is run or checked by a test, or says why it can't be."""

from __future__ import annotations

import importlib

import pytest

from tests.docs.pages import PAGES, Block, blocks_of

# Each has a table BLOCKS: the names of the blocks that it runs or checks, by page.
TESTED_BY = (
    "tests.docs.test_contract_page",
    "tests.docs.test_deploy_docker",
    "tests.docs.test_env_example",
    "tests.docs.test_pages",
    "tests.docs.test_readme",
    "tests.docs.test_snippets",
    "tests.mcp.test_mcp",
    "tests.mqtt.test_broker_acl",
    "tests.neighbours.test_home_assistant",
    "tests.neighbours.test_node_red",
    "tests.neighbours.test_proxies",
)


def known() -> set[tuple[str, str]]:
    """Page and name of each block that a test knows."""
    return {
        (page, name)
        for module in TESTED_BY
        for page, names in importlib.import_module(module).BLOCKS.items()
        for name in names
    }


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
NAMED = [block for block in BLOCKS if block.mark in ("run", "snippet")]


def place(block: Block) -> str:
    return f"{block.page}:{block.line}"


def test_every_block_says_how_it_is_tested():
    assert [place(block) for block in BLOCKS if not block.mark] == []


def test_every_block_that_names_a_test_has_one_and_no_test_is_left_without_its_block():
    named = [(block.page, block.name) for block in NAMED]
    assert len(named) == len(set(named))
    assert set(named) == known()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.mark == "not run"], ids=place)
def test_block_that_is_not_run_gives_a_reason(block):
    assert len(block.name.split()) > 2
