"""The pages, and the fenced blocks in them.

The line above each block is a comment that tells how it is tested:

    <!-- run: name -->         the commands are run (README)
    <!-- snippet: name -->     the test of this page runs or checks it
    <!-- not run: reason -->   it can't be run, and why
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tests.lab.bridge import PROJECT

PAGES = {
    str(file.relative_to(PROJECT)): file.read_text(encoding="utf-8")
    for pattern in ("*.md", "docs/*.md", "deploy/**/*.md", "benchmarks/*.md")
    for file in sorted(PROJECT.glob(pattern))
}
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)$")
_MARK = re.compile(r"^ *<!-- (?P<mark>run|snippet|not run): (?P<name>.+) -->$")


class Block(NamedTuple):
    page: str
    line: int
    language: str
    # "run", "snippet", "not run", or empty where the block has no mark.
    mark: str
    name: str
    text: str


def blocks_of(page: str) -> list[Block]:
    """The fenced blocks of a page in their order, without their indentation."""
    found: list[Block] = []
    lines = iter(enumerate(PAGES[page].splitlines(), start=1))
    before = ""
    for number, line in lines:
        if fence := _FENCE.match(line):
            indent, content = fence["indent"], []
            for _, inner in lines:
                if inner == f"{indent}```":
                    break
                content.append(inner.removeprefix(indent) + "\n")
            marked = _MARK.match(before)
            mark, name = (marked["mark"], marked["name"]) if marked else ("", "")
            found.append(Block(page, number, fence["language"], mark, name, "".join(content)))
        before = line
    return found


def snippet(page: str, name: str) -> str:
    """The text of a marked block."""
    (text,) = [block.text for block in blocks_of(page) if block.name == name]
    return text
