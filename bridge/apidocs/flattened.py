"""OpenAPI 3.0 for platforms that give operations to language models.

They understand a subset: no references, no alternatives, no null. So each schema is inlined; of
several types the first stands; alternatives that are objects become one object that requires what
all of them require; a nullable property is not required. An operation has its 200 response only,
since some importers reject others. Some accept at most 100,000 characters: this is far below.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ..core.operations import OPERATIONS
from ..devices.models import JsonObject
from .openapi import LICENSE

_REF = "#/components/schemas/"
# OpenAPI 3.0 has no identifiers of licences.
_LICENSE_URL = f"https://spdx.org/licenses/{LICENSE}.html"
_DROPPED = frozenset({"examples", "default", "title"})
_LONGEST_DESCRIPTION = 300


def flattened(document: JsonObject) -> JsonObject:
    """The plain form of one of our OpenAPI 3.1 documents; operations only."""
    schemas = document["components"]["schemas"]
    flat: JsonObject = {
        "openapi": "3.0.3",
        "info": {**document["info"], "license": {"name": LICENSE, "url": _LICENSE_URL}},
        "tags": document["tags"],
        "paths": {
            row.path: {
                method: _operation(described, lambda schema: _flat(schema, schemas))
                for method, described in document["paths"][row.path].items()
            }
            for row in OPERATIONS.values()
        },
    }
    flat["security"] = []
    if document["security"]:
        # Some importers accept one scheme only.
        bearer = document["components"]["securitySchemes"]["Bearer"]
        flat["components"] = {"securitySchemes": {"Bearer": bearer}}
        flat["security"] = [{"Bearer": []}]
    return flat


Flatten = Callable[[JsonObject], JsonObject]


def _operation(described: JsonObject, flat: Flatten) -> JsonObject:
    plain = {**described, "description": _short(described["description"])}
    if "parameters" in described:
        plain["parameters"] = [_parameter(each, flat) for each in described["parameters"]]
    if "requestBody" in described:
        plain["requestBody"] = _with_content(described["requestBody"], flat)
    success = _with_content(described["responses"]["200"], flat, with_example=False)
    plain["responses"] = {"200": success}
    return plain


def _parameter(parameter: JsonObject, flat: Flatten) -> JsonObject:
    plain = {**parameter, "schema": flat(parameter["schema"])}
    if "description" in plain:
        plain["description"] = _short(plain["description"])
    return plain


def _with_content(part: JsonObject, flat: Flatten, *, with_example: bool = True) -> JsonObject:
    content: JsonObject = {}
    for media_type, described in part["content"].items():
        content[media_type] = {"schema": flat(described["schema"])}
        if with_example and "examples" in described:
            first = next(iter(described["examples"].values()))
            content[media_type]["example"] = first["value"]
    return {**part, "content": content}


def _flat(schema: JsonObject, schemas: Mapping[str, JsonObject]) -> JsonObject:
    if "$ref" in schema:
        beside = {name: value for name, value in schema.items() if name != "$ref"}
        return _flat({**schemas[schema["$ref"].removeprefix(_REF)], **beside}, schemas)
    if "allOf" in schema:
        return _all_of([_flat(part, schemas) for part in schema["allOf"]])
    for choice in ("anyOf", "oneOf"):
        if choice in schema:
            if all(part.keys() == {"required"} for part in schema[choice]):
                # The properties' descriptions say which of them go together.
                whole = {name: value for name, value in schema.items() if name != choice}
                return _flat(whole, schemas)
            parts = [_flat(part, schemas) for part in schema[choice] if not _is_null(part)]
            beside = {name: value for name, value in schema.items() if name != choice}
            return _one_of(parts) | _flat(beside, schemas)
    return _plain(schema, schemas)


def _plain(schema: JsonObject, schemas: Mapping[str, JsonObject]) -> JsonObject:
    plain: JsonObject = {}
    for name, value in schema.items():
        if name == "const":
            plain |= _enumerated([value])
        elif name == "enum":
            plain |= _enumerated(value)
        elif name == "items":
            plain["items"] = _flat(value, schemas)
        elif name == "properties":
            plain["properties"] = {
                each: _flat(of, schemas) for each, of in value.items() if not _is_null(of)
            }
        elif name == "required":
            of = schema["properties"]
            plain["required"] = [each for each in value if not _may_be_null(of[each])]
        elif name == "description":
            plain["description"] = _short(value)
        elif name not in _DROPPED:
            plain[name] = value
    if not plain.get("required", [""]):
        del plain["required"]
    if schema.get("examples"):
        plain["example"] = schema["examples"][0]
    if "properties" in plain:
        # A docstring, meant for those who read the code.
        plain.pop("description", None)
    return plain


def _enumerated(values: list[Any]) -> JsonObject:
    kinds = {bool: "boolean", int: "integer", str: "string"}
    return {"type": kinds[type(values[0])], "enum": values}


def _is_null(schema: JsonObject) -> bool:
    return schema.get("type") == "null"


def _may_be_null(schema: JsonObject) -> bool:
    return _is_null(schema) or any(_is_null(part) for part in schema.get("anyOf", []))


def _all_of(parts: list[JsonObject]) -> JsonObject:
    """One object that is all of these; later ones narrow what earlier ones say."""
    whole = dict(parts[0])
    for part in parts[1:]:
        properties = dict(whole["properties"])
        for name, schema in part["properties"].items():
            properties[name] = {**properties.get(name, {}), **schema}
        whole["properties"] = properties
    return whole


def _one_of(parts: list[JsonObject]) -> JsonObject:
    """One schema for several alternatives: the first, or all objects as one."""
    if not all("properties" in part for part in parts):
        return parts[0]
    whole: JsonObject = {"type": "object", "properties": {}}
    for part in parts:
        for name, schema in part["properties"].items():
            known = whole["properties"].get(name)
            whole["properties"][name] = schema if known is None else _either(known, schema)
    required = [
        name
        for name in parts[0].get("required", [])
        if all(name in part.get("required", []) for part in parts[1:])
    ]
    if required:
        whole["required"] = required
    return whole


def _either(one: JsonObject, other: JsonObject) -> JsonObject:
    if "properties" in one and "properties" in other:
        return _one_of([one, other])
    if "enum" in one and "enum" in other:
        return {**one, "enum": list(dict.fromkeys([*one["enum"], *other["enum"]]))}
    # An open type beside an enumeration: open.
    return other if "enum" in one else one


def _short(description: str) -> str:
    if len(description) <= _LONGEST_DESCRIPTION:
        return description
    return description[: _LONGEST_DESCRIPTION - 1] + "…"
