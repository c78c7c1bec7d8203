"""System registers in words: the part of several reports that is a register, and `inspector decode --register`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from inspector.codec import (
    RES,
    decode_register,
    describe_register,
    doubts,
    is_known,
    register_layout,
    table_address,
)
from inspector.report.format import address, columns, fields, raw

_SAID_FIRST = ("esr_el1", "esr_el2", "esr_el12", "hpfar_el2")
"""Registers whose fields say little by themselves."""


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
    if name.lower() in _SAID_FIRST:
        return f"{describe_register(name, value)} [{' '.join(said)}]"
    return " ".join(said)


def register_lines(name: str, value: int, e2h: bool = False) -> Iterator[str]:
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


def register_facts(name: str, value: int, e2h: bool = False) -> dict[str, Any]:
    """The same as JSON has it; ``layout`` is the condition under which the register has this layout, if it has two."""
    return {
        "register": name.upper(),
        "value": raw(value),
        "layout": register_layout(name, e2h).when or None,
        "fields": dict(decode_register(name, value, e2h)),
        "text": describe_register(name, value),
        "doubts": doubts(name, value, e2h),
    }
