"""The memory slots of every VM, and what backs them (`inspector memslots`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from msgspec import Meta

from inspector.backing import BackingRuns
from inspector.capture.view import vm_title
from inspector.report.document import Bytes, Document, Hex, Number, Record, hex_or_null, hexed, rows
from inspector.report.format import Lines, Painter, address, columns, size
from inspector.snapshot import BackingState, Capture, Memslot, Vm

_FLAGS = {0: "log-dirty", 1: "read-only", 2: "guest-memfd", 16: "invalid"}
"""``KVM_MEM_*`` and ``KVM_MEMSLOT_INVALID`` by bit."""


class BackingRun(Record, frozen=True):
    """Pages of the VMM's address space with one physical extent."""

    hva: Hex
    size: Bytes
    pa: Hex | None
    state: BackingState
    readable: bool
    writable: bool
    entry_size: Annotated[Bytes, Meta(description="Of the stage-1 entries that make the run.")]


class Slot(Record, frozen=True):
    """A memory slot."""

    id: Number
    as_id: Number
    ipa: Hex
    size: Bytes
    hva: Hex
    flags: Sequence[str]
    dirty_bitmap: bool
    backing: Sequence[BackingRun]


class SlotsOfVm(Record, frozen=True):
    """A VM's slots in order of address."""

    name: str
    memslots: Sequence[Slot]


class Memslots(Document, frozen=True, kw_only=True):
    """`inspector memslots`."""

    command: Literal["memslots"] = "memslots"
    vms: Sequence[SlotsOfVm]


def _flags(flags: int) -> list[str]:
    return [_FLAGS.get(bit, f"bit{bit}") for bit in range(flags.bit_length()) if flags >> bit & 1]


def flags_text(flags: int) -> str:
    """``log-dirty,read-only``; unknown bits by number; ``-`` for none."""
    return ",".join(_flags(flags)) or "-"


def _in_order(vm: Vm) -> list[Memslot]:
    return sorted(vm.memslots, key=lambda slot: (slot.as_id, slot.base_gfn))


def _slot(slot: Memslot, page: int) -> Slot:
    def backing() -> Iterator[BackingRun]:
        for run in slot.backing:
            yield BackingRun(
                hexed(run.hva), run.size, hex_or_null(run.pa), run.state, run.readable, run.writable, run.entry_size
            )

    return Slot(
        id=slot.id,
        as_id=slot.as_id,
        ipa=hexed(slot.base_gfn * page),
        size=slot.npages * page,
        hva=hexed(slot.userspace_addr),
        flags=_flags(slot.flags),
        dirty_bitmap=bool(slot.dirty_bitmap),
        backing=rows(backing()),
    )


def document(capture: Capture) -> Memslots:
    """`inspector memslots`."""
    page = capture.host.page_size
    return Memslots(
        vms=rows(SlotsOfVm(vm.name, rows(_slot(slot, page) for slot in _in_order(vm))) for vm in capture.vms)
    )


def lines(paint: Painter, capture: Capture) -> Lines:
    """The slots of every VM, with what backs them where the capture knows it."""
    page = capture.host.page_size
    for vm in capture.vms:
        yield paint(vm_title(vm), "bold")
        rows = []
        for slot in _in_order(vm):
            start, length = slot.base_gfn * page, slot.npages * page
            rows.append(
                (
                    str(slot.id),
                    address(start),
                    address(start + length),
                    size(length),
                    address(slot.userspace_addr),
                    flags_text(slot.flags),
                    "yes" if slot.dirty_bitmap else "no",
                    _backing(slot),
                )
            )
        head = ("slot", "IPA", "end", "size", "HVA", "flags", "dirty bitmap", "backing")
        yield from columns(head, rows, right=(0, 3), indent="  ", paint=paint) or ["  no memslots"]


def _backing(slot: Memslot) -> str:
    totals = BackingRuns.of(slot.backing).totals()
    return ", ".join(f"{size(total)} {state}" for state, total in sorted(totals.items())) or "-"
