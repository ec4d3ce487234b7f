"""The page of Swagger UI, offline: our HTML, and the files that the wheel `swagger-ui-py` carries.

The wheel is taken for its files only; nothing of it is imported.
"""

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

# Swagger UI's files, and what each is.
FILES = {
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
}

_PAGE = Path(__file__).with_name("page.html")
_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


@cache
def html() -> bytes:
    """The page; it asks for an API key if the documents need one."""
    return _PAGE.read_bytes()


@cache
def security_policy() -> str:
    """The page's Content-Security-Policy: nothing from elsewhere, no script but its own."""
    script = _SCRIPT.search(html())
    assert script is not None
    digest = b64encode(sha256(script[1]).digest()).decode()
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        f"script-src 'sha256-{digest}' blob:; style-src 'unsafe-inline' blob:; "
        "img-src data:; connect-src 'self'"
    )


def file(name: str) -> bytes:
    """One of Swagger UI's `FILES`, read from the disk.

    Raises:
        FileNotFoundError: the wheel is not installed.
    """
    # Looked for, not imported: the package would bring in a template engine.
    spec = find_spec("swagger_ui")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("swagger-ui-py is not installed")
    return (Path(spec.origin).with_name("static") / name).read_bytes()
