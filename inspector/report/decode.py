"""Descriptors, decoded: what `inspector decode` says, and the part of other reports that is an entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import UNSET, Meta, UnsetType

from inspector.codec import Descriptor, Execute, Kind, Shareability
from inspector.report.document import Document, Hex, Level, Number, Raw, Record, hex_or_null, hexed
from inspector.report.format import Lines, Painter, columns, raw

Fields = Annotated[Mapping[str, Hex], Meta(description="Every named field, and `res`: bits without a name, in place.")]
Shared = Annotated[
    Shareability | None, Meta(description="`null` with 52-bit descriptors (LPA2), where the bits hold an address.")
]


class Leaf(Record, frozen=True):
    """The attributes of a block or page."""

    read: bool
    write: bool
    execute: Execute
    memory_type: Annotated[str, Meta(description="`normal`, `normal-nc`, `device-nGnRE`, `as-s1` or `memattr-0x..`.")]
    shareability: Shared
    af: bool
    sw: Annotated[Number, Meta(description="Software bits [58:55].")]


class DecodedDescriptor(Document, frozen=True, kw_only=True):
    """`inspector decode VALUE`."""

    command: Literal["decode"] = "decode"
    level: Level
    raw: Raw
    kind: Kind
    pa: Hex | None
    fields: Fields
    text: str
    leaf: Leaf | UnsetType = UNSET


def leaf(found: Descriptor) -> Leaf:
    """The attributes of a leaf."""
    share = None if found.geometry.lpa2 else found.shareable
    return Leaf(found.readable, found.writable, found.executable, found.memory_type, share, found.af, found.sw)


def attributes(found: Descriptor) -> str:
    """What `describe` says of a leaf after its address."""
    return found.describe().removeprefix(f"{found.kind.value} PA {found.output_address:#x}")


Parts = tuple[str, Kind, str | None, Mapping[str, str], str, Leaf | UnsetType]


def parts(found: Descriptor) -> Parts:
    """Of an entry: ``raw``, ``kind``, ``pa``, ``fields``, ``text``, ``leaf``, as documents have them."""
    values = {name: hexed(value) for name, value in found.fields.items()}
    known = leaf(found) if found.kind.is_leaf else UNSET
    return raw(found.raw), found.kind, hex_or_null(found.output_address), values, found.describe(), known


# --- the command ---


def document(found: Descriptor) -> DecodedDescriptor:
    """`inspector decode VALUE`."""
    raw, kind, pa, values, text, leaf = parts(found)
    return DecodedDescriptor(level=found.level, raw=raw, kind=kind, pa=pa, fields=values, text=text, leaf=leaf)


def lines(paint: Painter, found: Descriptor) -> Lines:
    """One descriptor, field by field."""
    yield f"{raw(found.raw)} at level {found.level}: {found.describe()}"
    rows = []
    for name, value in found.fields.items():
        source = found.layout.by_name[name].source if name in found.layout.by_name else "bits without a name"
        rows.append((name, f"{value:#x}", source))
    yield from columns(("field", "value", "source"), rows, right=(1,), indent="  ")
