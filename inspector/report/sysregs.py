"""System registers in words: the part of several reports that is a register, and `inspector decode --register`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from msgspec import Meta

from inspector.codec import (
    RES,
    decode_register,
    describe_register,
    doubts,
    is_known,
    register_key,
    register_layout,
    table_address,
)
from inspector.report.document import Document, Number, Raw, Record
from inspector.report.format import Lines, Painter, address, columns, fields, raw

Fields = Annotated[Mapping[str, Number], Meta(description="Every field by name; `BADDR` is [47:1] as it stands.")]


class Register(Record, frozen=True):
    """A register and its fields."""

    value: Raw
    fields: Fields


class DecodedRegister(Document, frozen=True, kw_only=True):
    """`inspector decode --register NAME VALUE`."""

    command: Literal["decode"] = "decode"
    register: str
    value: Raw
    layout: Annotated[str | None, Meta(description="`HCR_EL2.E2H=0` or `=1`, where the register has two layouts.")]
    fields: Fields
    text: str
    doubts: Annotated[Sequence[str], Meta(description="A sentence for each thing that no CPU would have there.")]


_SAID_FIRST = ("esr_el1", "esr_el2", "hpfar_el2")
"""Registers whose fields say little by themselves."""


def register(name: str, value: int) -> Register:
    """A register that has one layout."""
    return Register(raw(value), decode_register(name, value))


def register_text(name: str, value: int, e2h: bool = False) -> str:
    """``PS=5 (48 bits) VS=1 …``: the non-zero fields of a register by name; empty for one that is not known."""
    if not is_known(name):
        return ""
    layout = register_layout(name, e2h)
    meanings = {row.name: row for row in layout.rows(value)}
    said = []
    for field, number in layout.decode(value).items():
        number &= ~layout.res1 if field == RES else number
        if field == "BADDR" and number:
            said.append(f"BADDR={address(table_address(value))}")
        elif number:
            meaning = meanings[field].describe(number) if field in meanings else ""
            said.append(fields([(field, number)]) + (f" ({meaning})" if meaning else ""))
    if register_key(name) in _SAID_FIRST:
        return f"{describe_register(name, value)} [{' '.join(said)}]"
    return " ".join(said)


def lines(paint: Painter, name: str, value: int, e2h: bool) -> Lines:
    """One register: in one line, what is doubtful of it, then field by field."""
    layout = register_layout(name, e2h)
    words = describe_register(name, value)
    other = "" if e2h else " (with --e2h: as on a VHE host)"
    when = f", its layout with {layout.when}{other}" if layout.when else ""
    yield f"{name.upper()} {raw(value)}{when}" + (f": {words}" if words else "")
    yield from (f"  doubtful: {doubt}" for doubt in doubts(name, value, e2h))
    by_name = {row.name: row for row in layout.rows(value)}
    rows = []
    for field, number in layout.decode(value).items():
        row = by_name.get(field)
        said = (row.meaning, row.describe(number)) if row else ("bits without a name",)
        if field == "BADDR":
            said = (address(table_address(value)), *said)
        rows.append((field, row.place if row else "", f"{number:#x}", ": ".join(word for word in said if word)))
    yield from columns(("field", "bits", "value", "meaning"), rows, right=(1, 2), indent="  ")


def document(name: str, value: int, e2h: bool) -> DecodedRegister:
    """`inspector decode --register NAME VALUE`."""
    return DecodedRegister(
        register=name.upper(),
        value=raw(value),
        layout=register_layout(name, e2h).when or None,
        fields=decode_register(name, value, e2h),
        text=describe_register(name, value),
        doubts=doubts(name, value, e2h),
    )
