"""A validator for the part of JSON Schema that ``schema.json`` uses; an unknown keyword is an error, not a pass."""

from __future__ import annotations

import re
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
_KNOWN = {
    "$ref",
    "$defs",
    "$schema",
    "title",
    "description",
    "type",
    "const",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "anyOf",
    "oneOf",
    "items",
    "properties",
    "required",
    "additionalProperties",
}


def errors(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "$") -> list[str]:
    """What is wrong with ``value``; empty when it satisfies ``schema``."""
    assert schema.keys() <= _KNOWN, schema.keys() - _KNOWN
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/$defs/")
        return errors(value, root["$defs"][name], root, at)
    found = _scalar(value, schema, at)
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            results: list[list[str]] = [errors(value, one, root, at) for one in schema[keyword]]
            passed = sum(not result for result in results)
            if passed == 0:
                found += sorted(results, key=len)[0]
            elif keyword == "oneOf" and passed > 1:
                found.append(f"{at}: satisfies {passed} of the alternatives")
    if isinstance(value, list) and "items" in schema:
        for number, item in enumerate(value):
            found += errors(item, schema["items"], root, f"{at}[{number}]")
    if isinstance(value, dict):
        found += _members(value, schema, root, at)
    return found


def _scalar(value: Any, schema: dict[str, Any], at: str) -> list[str]:
    found = []
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{at}: {value!r} is no {kind}"]
    if "const" in schema and value != schema["const"]:
        found.append(f"{at}: {value!r} is not {schema['const']!r}")
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{at}: {value!r} is none of {schema['enum']}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{at}: {value!r} does not match {schema['pattern']}")
    if "minimum" in schema and value < schema["minimum"]:
        found.append(f"{at}: {value} is below {schema['minimum']}")
    if "maximum" in schema and value > schema["maximum"]:
        found.append(f"{at}: {value} is above {schema['maximum']}")
    return found


def _members(value: dict[str, Any], schema: dict[str, Any], root: dict[str, Any], at: str) -> list[str]:
    found = [f"{at}: {name} is missing" for name in schema.get("required", []) if name not in value]
    properties = schema.get("properties", {})
    for name, member in value.items():
        if name in properties:
            found += errors(member, properties[name], root, f"{at}.{name}")
        elif schema.get("additionalProperties", True) is False:
            found.append(f"{at}: {name} is not documented")
        elif isinstance(schema.get("additionalProperties"), dict):
            found += errors(member, schema["additionalProperties"], root, f"{at}.{name}")
    return found
