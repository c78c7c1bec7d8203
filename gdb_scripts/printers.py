"""Runs inside gdb: pretty printers for KVM's page-table types, in a gdb that has a vmlinux with debug information.

Members by name, so whatever the release has is shown (docs/kernel.md 1, 3.5, 13.1); what it has not is left out.
``enum kvm_pgtable_prot`` and the walk flags gdb prints well by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gdb
import gdb.printing

from gdb_scripts import facts
from inspector.codec import Format, Geometry, Regime, decode, entry_geometry

_GRANULES = {1 << 12: "4k", 1 << 14: "16k", 1 << 16: "64k"}


def _has(value: Any, name: str) -> bool:
    return any(field.name == name for field in value.type.strip_typedefs().fields())


def _number(value: Any) -> int:
    return int(value) & (1 << 8 * int(value.type.sizeof)) - 1


def _pgtable(value: Any) -> Iterator[str]:
    yield f"{int(value['ia_bits'])}-bit input address"
    yield f"starts at level {int(value['start_level'])}"
    yield f"pgd {_number(value['pgd']):#x}"
    if _has(value, "mmu"):
        yield f"mmu {_number(value['mmu']):#x}"
    if _has(value, "flags"):
        yield f"flags {value['flags']}"


def _mmu(value: Any) -> Iterator[str]:
    # atomic64_t from 6.0 on; before it, a generation and a number (docs/kernel.md 1.2)
    vmid = value["vmid"]
    if _has(vmid, "id"):
        yield f"VMID {_number(vmid['id']['counter']) & 0xFFFF}"
    elif _has(vmid, "vmid"):
        yield f"VMID {_number(vmid['vmid'])}"
    yield f"root at PA {_number(value['pgd_phys']):#x}"
    yield f"pgt {_number(value['pgt']):#x}"
    if _has(value, "vtcr") and (vtcr := _number(value["vtcr"])):
        try:
            yield Geometry.from_vtcr(vtcr).describe()
        except ValueError as error:
            yield str(error)


def _visit(value: Any) -> Iterator[str]:
    level, old = int(value["level"]), _number(value["old"])
    yield f"level {level}"
    yield f"address {_number(value['addr']):#x} of {_number(value['start']):#x} to {_number(value['end']):#x}"
    yield f"ptep {_number(value['ptep']):#x}"
    yield f"old {old:#018x} ({_entry(old, level)})"
    yield f"flags {value['flags']}"


def _entry(raw: int, level: int) -> str:
    """By the page size of the machine that was looked at last, else 4K."""
    granule = _GRANULES[facts.facts().page_size] if facts.is_known() else "4k"
    return decode(raw, level, entry_geometry(level, granule, False), Format(Regime.STAGE2)).describe()


def _pte(value: Any) -> Iterator[str]:
    """Without its level an entry is one of two things (DDI 0487 D8.3)."""
    raw = _number(value)
    yield f"{raw:#018x}"
    yield ("invalid", "block, or reserved at level 3", "invalid", "table, or page at level 3")[raw & 3]


class _Printer:
    def __init__(self, value: Any, parts: Callable[[Any], Iterator[str]]) -> None:
        self._value = value
        self._parts = parts

    def to_string(self) -> str:
        return ", ".join(self._parts(self._value))


_STRUCTS: dict[str, Callable[[Any], Iterator[str]]] = {
    "kvm_pgtable": _pgtable,
    "kvm_s2_mmu": _mmu,
    "kvm_pgtable_visit_ctx": _visit,
}


class _Lookup:
    """What gdb asks for each value it prints; ``name`` and ``enabled`` are what 'info pretty-printer' lists."""

    name = "kvm-stage2"
    enabled = True

    def __call__(self, value: Any) -> _Printer | None:
        if value.type.name == "kvm_pte_t":
            return _Printer(value, _pte)
        kind = value.type.strip_typedefs()
        if kind.code == gdb.TYPE_CODE_STRUCT and kind.tag in _STRUCTS:
            return _Printer(value, _STRUCTS[kind.tag])
        return None


def load() -> None:
    gdb.printing.register_pretty_printer(None, _Lookup(), replace=True)
