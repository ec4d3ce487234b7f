"""The tables of docs/contract.md, made from what the code itself uses.

`refreshed` renews them in the page's text; what is between them is written by hand. Run
`python -m docs.generate_contract docs/contract.md` after a change to operations, fields,
errors, settings' limits or metrics.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bridge.apidocs.refusals import refusals
from bridge.apidocs.schemas import components
from bridge.core.operations import OPERATIONS, Operation
from bridge.devices.errors import DeviceNotFound
from bridge.devices.models import JsonObject
from bridge.errors import BridgeError
from bridge.observability.metrics import Metrics
from bridge.observability.observations import RequestAnswered

_BLOCK = re.compile(r"(<!-- made: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CHINESE = re.compile("[\u3000-\u9fff\uff00-\uffef]")
_PUNCTUATION = str.maketrans({"、": ", ", "；": "; ", "：": ": "})
# Errors that no one operation has.
_ELSEWHERE = {
    "operation_not_found": "unknown paths and topics",
    "method_not_allowed": "known paths with another method",
    "unsupported_version": "any over MQTT",
}
_PLACEHOLDER = re.compile(r"\{[^}]*\}")


def refreshed(page: str) -> str:
    """The page with each block between `<!-- made: name -->` and `<!-- end -->` made anew.

    Raises:
        KeyError: the page names a block that there is not.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}{found[3]}", page)


def operations() -> str:
    """Where each operation is, and whether it may stand in a batch."""
    return _table(
        ("operation", "what it does", "HTTP", "MQTT", "in a batch"),
        (
            (
                f"`{row.name}`",
                row.summary.en,
                f"`{row.method} {row.path}`",
                f"`plugin/request/{row.name}`" if row.over_mqtt else "–",
                "yes" if row.in_batch else "no",
            )
            for row in OPERATIONS.values()
        ),
    )


def fields() -> str:
    """What each operation takes."""
    return _table(
        ("operation", "field", "type", "required", "meaning"),
        (
            (f"`{row.name}`", f"`{name}`", _kind(schema), required, _english(schema))
            for row in OPERATIONS.values()
            for name, schema, required in _fields_of(row)
        ),
    )


def data() -> str:
    """What `data` holds in each operation's reply."""
    schemas = components({})
    return _table(
        ("operation", "field of `data`", "type", "meaning"),
        (
            (f"`{row.name}`", f"`{name}`", _kind(schema), _english(schema))
            for row in OPERATIONS.values()
            for name, schema in _data_of(row, schemas)
        ),
    )


def errors() -> str:
    """Every error: its code, its name, what it says, and whom it may answer."""
    return _table(
        ("code", "`error`", "`detail` (with `LANGUAGE=en`)", "answers"),
        (
            (str(code), f"`{error}`", "<br>".join(_sentences(kinds)), _asked_by(kinds))
            for (code, error), kinds in _errors_by_name().items()
        ),
    )


def metrics() -> str:
    """Every metric, as `/metrics` exposes it."""
    return _table(
        ("metric", "type", "labels", "meaning"),
        (
            (
                f"`{family.name}_total`" if family.type == "counter" else f"`{family.name}`",
                family.type,
                ", ".join(f"`{label}`" for label in family.samples[0].labels if label != "le")
                or "–",
                family.documentation,
            )
            for family in _metrics_with_samples().registry.collect()
        ),
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "operations": operations,
    "fields": fields,
    "data": data,
    "errors": errors,
    "metrics": metrics,
}


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join("| " + " | ".join(_cell(text) for text in line) + " |\n" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _fields_of(row: Operation) -> Iterator[tuple[str, JsonObject, str]]:
    schema = row.fields.model_json_schema()
    required = schema.get("required", [])
    for name, of in schema.get("properties", {}).items():
        yield name, of, "yes" if name in required else "no"


def _data_of(row: Operation, schemas: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    told: set[str] = set()
    for model in _models_of(schemas[_reply_name(row)]["properties"]["data"], schemas):
        for name, of in model.get("properties", {}).items():
            if name not in told:
                told.add(name)
                yield name, of


def _models_of(schema: JsonObject, schemas: JsonObject) -> Iterator[JsonObject]:
    if "$ref" in schema:
        yield schemas[schema["$ref"].rpartition("/")[2]]
    for one in schema.get("anyOf", ()):
        yield from _models_of(one, schemas)


def _reply_name(row: Operation) -> str:
    return "".join(word.capitalize() for word in row.name.split("-")) + "Reply"


def _kind(schema: JsonObject) -> str:
    """A schema's type in a few words: `integer`, `list of Reading`, `text or null`."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    kind = str(schema.get("type", "any"))
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    return {"string": "text", "boolean": "true or false"}.get(kind, kind) + _limits(schema)


def _limits(schema: JsonObject) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        return f" {least}–{most}"
    if "maxLength" in schema:
        return f", {schema.get('minLength', 0)}–{schema['maxLength']} characters"
    return ""


def _english(schema: JsonObject) -> str:
    """The English half of a description; one that is in no language is spelt the English way."""
    description = str(schema.get("description", ""))
    half = description.rpartition(" / ")[2]
    return (description if _CHINESE.search(half) else half).translate(_PUNCTUATION)


def _metrics_with_samples() -> Metrics:
    # A family tells its labels by its samples only, and some have none before something happens.
    metrics = Metrics()
    metrics.request_answered(RequestAnswered("http", "health", None, 200, "ok", 0.0))
    metrics.dropped("retained")
    return metrics


def _errors_by_name() -> dict[tuple[int, str], list[type[BridgeError]]]:
    found: dict[tuple[int, str], list[type[BridgeError]]] = {}

    def collect(kind: type[BridgeError]) -> None:
        found.setdefault((kind.code, kind.error), []).append(kind)
        for special in kind.__subclasses__():
            # Those of the two trees: what else is loaded must not change the page.
            if special.__module__ in (BridgeError.__module__, DeviceNotFound.__module__):
                collect(special)

    collect(BridgeError)
    return dict(sorted(found.items()))


def _sentences(kinds: list[type[BridgeError]]) -> list[str]:
    own = [kind.text.en for kind in kinds if "text" in vars(kind)]
    return [_PLACEHOLDER.sub("…", sentence) for sentence in own]


def _asked_by(kinds: list[type[BridgeError]]) -> str:
    """The operations that may be answered so; `HTTP` or `MQTT` where only one transport may."""
    over = {
        transport: {
            row.name
            for row in OPERATIONS.values()
            if (transport == "http" or row.over_mqtt)
            and set(kinds) & set(refusals(row, transport, guarded=True))
        }
        for transport in ("http", "mqtt")
    }
    if elsewhere := _ELSEWHERE.get(kinds[0].error):
        return elsewhere
    names = over["http"] | over["mqtt"]
    where = "" if all(over.values()) else " over HTTP" if over["http"] else " over MQTT"
    if names >= {row.name for row in OPERATIONS.values() if row.over_mqtt}:
        return f"any{where}"
    return ", ".join(f"`{row}`" for row in OPERATIONS if row in names) + where


def main(paths: list[str]) -> int:
    """Renew the tables of each page in place; the exit status."""
    for path in map(Path, paths):
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
