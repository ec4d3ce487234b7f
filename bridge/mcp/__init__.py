"""The bridge for language models: its operations as tools of the Model Context Protocol (MCP).

`tools` says what there is, `server` gives it to the official SDK, `endpoint` serves that at `/mcp/`
and `stdio` on standard input and output. The SDK is an extra of its own, and is loaded when it is
first needed: it would cost every start half a second and 20 MB.
"""

from importlib import metadata

from ..errors import OperationNotFound, Text

# What to give to `pip install`; `pyproject.toml` says the same.
REQUIREMENT = "mcp>=2.3,<3"


class NotInstalled(OperationNotFound):
    """The SDK is not there, or too old."""

    text = Text(
        '此桥接服务未启用 MCP；请管理员执行 pip install "{requirement}" 后重启服务',
        "MCP is not installed in this bridge; ask the administrator to run "
        'pip install "{requirement}" and restart the bridge',
    )


def check_installed() -> None:
    """Raise NotInstalled unless the SDK is there, in a version of ours; the SDK is not loaded."""
    try:
        major, minor, *_ = metadata.version("mcp").split(".")
    except metadata.PackageNotFoundError:
        raise NotInstalled(requirement=REQUIREMENT) from None
    if (major, int(minor) >= 3) != ("2", True):
        raise NotInstalled(requirement=REQUIREMENT)
