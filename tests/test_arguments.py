"""The command line: what it says of wrong arguments and of missing packages, in both languages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bridge.arguments import parse
from tests.lab.bridge import PROJECT

# Wrong arguments, and what is said of them.
WRONG = [
    ("call", "缺少参数：operation", "the following arguments are required: operation"),
    ("nothing", "没有 'nothing'，可选：", "invalid choice: 'nothing' (choose from"),
    ("--nothing", "无法识别的参数：--nothing", "unrecognized arguments: --nothing"),
    ("call x --timeout", "参数 --timeout：缺少值", "argument --timeout: expected one argument"),
    (
        "call x --timeout 0",
        "'0' 应为大于 0、不超过 86400",
        "'0' must be a number of seconds",
    ),
    ("call x y", "'y' 不是 名称=值", "'y' is not name=value"),
    ("init-db --print=1", "不接受值 '1'", "ignored explicit argument '1'"),
    ("demo --language fr", "没有 'fr'，可选：", "invalid choice: 'fr' (choose from"),
    ("demo --http-port 0", "应为 1 到 65535 的整数", "must be a number from 1 to 65535"),
]


@pytest.mark.parametrize(("line", "zh", "en"), WRONG, ids=[case[0] for case in WRONG])
def test_wrong_arguments_are_told_in_the_readers_language(capsys, line, zh, en):
    for language, usage, said in (("zh", "用法：", zh), ("en", "usage: ", en)):
        with pytest.raises(SystemExit) as ended:
            parse(line.split(), language)
        assert ended.value.code == 2
        printed = capsys.readouterr().err
        assert printed.startswith(usage)
        assert said in printed.splitlines()[-1]


@pytest.mark.parametrize("command", ["", "demo", "call", "doctor", "init-db", "mcp", "serve"])
@pytest.mark.parametrize(("language", "usage"), [("zh", "用法："), ("en", "usage: ")])
def test_help_is_in_the_readers_language(capsys, command, language, usage):
    with pytest.raises(SystemExit) as ended:
        parse([*command.split(), "--help"], language)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(usage)
    assert printed.isascii() == (language == "en")


def test_without_its_packages_it_says_in_one_line_how_to_install_them(tmp_path):
    # Without `site` this Python has no packages, and takes itself for the system's.
    done = subprocess.run(
        [sys.executable, "-S", str(PROJECT / "run.py"), "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "缺少软件包" in line
    *_, steps = line.partition("is missing; run: ")
    assert steps.split(" && ")[-3:] == [
        f"{sys.executable} -m venv .venv",
        f".venv/bin/python -m pip install -r {PROJECT / 'requirements.txt'}",
        f".venv/bin/python {PROJECT / 'run.py'} demo",
    ]
