"""docs/schema.json and the tables of docs/schema.md, derived from the classes of the documents.

``python -m inspector.report.schema`` writes both; a test says when that was forgotten.  What stands in the page around
the tables is written by hand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from inspector import report
from inspector.report.document import SCHEMA, Document

DOCUMENTS: tuple[type[Document], ...] = (
    report.host.Info,
    report.host.RegistersDocument,
    report.vms.Vms,
    report.memslots.Memslots,
    report.dump.Dump,
    report.dump.DumpTree,
    report.walk.Walk,
    report.reverse.Reverse,
    report.decode.DecodedDescriptor,
    report.sysregs.DecodedRegister,
    report.capture.CaptureFile,
    report.check.Check,
    report.check.CheckList,
    report.diff.Diff,
    report.changes.DiffCaptures,
    report.model.Model,
    report.crosscheck.Crosscheck,
    report.trace.TraceDocument,
    report.story.OperationDocument,
    report.story.LifeOfEntry,
    report.story.TablesThen,
    report.validate.Validate,
    report.gdb.GdbInit,
    report.manual.ManualPage,
    report.manual.CompletionScript,
    report.inject.FaultList,
    report.inject.InjectedFault,
    report.inject.FaultMatrix,
    report.detection.SeededList,
    report.detection.DetectionMatrix,
)
"""Every document, in the order of the commands."""

_TOPS = [top.__name__ for top in DOCUMENTS]
DOCS = Path(__file__).resolve().parents[2] / "docs"
_REFERENCE = "#/$defs/"
_BEGIN, _END = "<!-- written by inspector.report.schema -->\n", "<!-- end -->\n"

Node = dict[str, Any]


def schema() -> Node:
    """The JSON Schema that every document of this version satisfies, and nothing with another member does."""
    tops, definitions = msgspec.json.schema_components(DOCUMENTS, ref_template=_REFERENCE + "{name}")
    for definition in definitions.values():
        for name, member in definition.get("properties", {}).items():
            if "default" in member:  # of the envelope: always there
                definition["required"].append(name)
                del member["default"]
        if "properties" in definition:
            definition["required"].sort(key=list(definition["properties"]).index)
    for top in DOCUMENTS:
        definitions[top.__name__]["properties"]["schema"] = {"const": SCHEMA}
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {
        "$schema": dialect,
        "title": f"inspector --json, schema {SCHEMA}",
        "oneOf": list(tops),
        "$defs": definitions,
    }


# --- the page ---


def _type(node: Node) -> str:
    """A member's type in words, with links to what it refers to."""
    if "$ref" in node:
        name = node["$ref"].removeprefix(_REFERENCE)
        return f"[{name}](#{name.lower()})"
    if "anyOf" in node:
        return " or ".join(_type(one) for one in node["anyOf"])
    if "enum" in node or "const" in node:
        return " \\| ".join(f"`{json.dumps(one)}`" for one in node.get("enum", [node.get("const")]))
    if node.get("type") == "array":
        return f"array of {_type(node['items'])}"
    if node.get("type") == "object":
        return f"object of {_type(node['additionalProperties'])}"
    return str(node.get("title") or node["type"])


def _tables(definitions: Node, names: list[str]) -> Iterator[str]:
    for name in names:
        definition = definitions[name]
        yield f"#### {name}\n\n{definition.get('description', '').replace('``', '`')}\n\n"
        if "enum" in definition:
            yield "One of " + ", ".join(f"`{value}`" for value in definition["enum"]) + ".\n\n"
            continue
        yield "| member | type | |\n|---|---|---|\n"
        for member, node in definition["properties"].items():
            if name in _TOPS and member in Document.__struct_fields__:
                continue
            absent = "" if member in definition["required"] else "Only of leaves. "
            yield f"| `{member}` | {_type(node)} | {absent}{node.get('description', '')} |\n".replace("|  |", "| |")
        yield "\n"


def page(before: str) -> str:
    """The text of docs/schema.md with its tables as they are to be."""
    definitions = schema()["$defs"]
    rest = [name for name in definitions if name not in _TOPS]
    said = "".join(("### Documents\n\n", *_tables(definitions, _TOPS), "### Parts\n\n", *_tables(definitions, rest)))
    return re.sub(f"{_BEGIN}.*{_END}", lambda _: f"{_BEGIN}\n{said}{_END}", before, flags=re.DOTALL)


def files() -> dict[Path, str]:
    """The two files as they are to be."""
    text = DOCS / "schema.md"
    return {DOCS / "schema.json": json.dumps(schema(), indent=1) + "\n", text: page(text.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    for path, content in files().items():
        path.write_text(content, encoding="utf-8")
