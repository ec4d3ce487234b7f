"""What the linters that plugin authors use say of the documents: nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from bridge.apidocs import Address, Documents
from bridge.settings import Settings

PROGRAMS = Path(__file__).parent / "node_modules" / ".bin"
OPENAPI = ("/openapi.json", "/openapi-3.0.json")
# Who runs a bridge is not ours to say, and the version of AsyncAPI is the one that tools read.
RULES = {
    "extends": ["spectral:oas", "spectral:asyncapi"],
    "rules": {"info-contact": "off", "asyncapi-info-contact": "off"},
}
# The paths that say how the service is have no 4xx, and the plain document has 200 alone. The other
# rule does not see that `anyOf` beside `properties` is about these properties.
REDOCLY = {
    "extends": ["recommended-strict"],
    "rules": {
        "operation-4xx-response": "off",
        "no-required-schema-properties-undefined": "off",
    },
}


def written(folder: Path, path: str, *, guarded: bool) -> Path:
    """One document, in a file."""
    settings = Settings(_env_file=None, public_url="https://bridge.school.cn")
    made = b"".join(
        Documents(settings).by_path[path](guarded, Address("http", "bridge.school.cn", ""))
    )
    file = folder / path.removeprefix("/")
    file.write_bytes(made)
    return file


def run(*command: str | Path, cwd: Path) -> tuple[int, str]:
    """Its exit status, and what it said."""
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, check=False, text=True, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("guarded", [False, True], ids=["open", "guarded"])
@pytest.mark.parametrize("path", OPENAPI)
def test_redocly_finds_no_fault(path, guarded, tmp_path):
    file = written(tmp_path, path, guarded=guarded)
    config = tmp_path / "redocly.yaml"
    config.write_text(json.dumps(REDOCLY))

    status, said = run(PROGRAMS / "redocly", "lint", file.name, f"--config={config}", cwd=tmp_path)

    assert status == 0, said
    assert "warning" not in said.replace("Deprecation warning", "")


@pytest.mark.parametrize("guarded", [False, True], ids=["open", "guarded"])
@pytest.mark.parametrize("path", [*OPENAPI, "/asyncapi.json"])
def test_spectral_finds_no_fault(path, guarded, tmp_path):
    file = written(tmp_path, path, guarded=guarded)
    rules = tmp_path / "rules.yaml"
    rules.write_text(json.dumps(RULES))

    status, said = run(
        PROGRAMS / "spectral",
        "lint",
        file.name,
        f"--ruleset={rules}",
        "--fail-severity=warn",
        cwd=tmp_path,
    )

    assert status == 0, said
