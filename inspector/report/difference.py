"""What `inspector diff` and `inspector model` say: as lines of text and as JSON documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from inspector.capture.view import regime_name, vm_title
from inspector.codec import Descriptor
from inspector.compare import Comparison, Difference, Side
from inspector.compare.instants import Change, Changes, MappingChange, TableChange, VmChange
from inspector.findings import Severity
from inspector.generations import KernelCode
from inspector.model import StepResult
from inspector.report.documents import Document, behaviours, envelope, where
from inspector.report.format import PLAIN, Painter, address, count, raw, size
from inspector.snapshot import Capture, MmuKind
from inspector.tables import Range

Lines = Iterator[str]

_COLORS = {Severity.ERROR: "bold red", Severity.NOTE: "yellow"}


def skipped(capture: Capture, compared: Sequence[Comparison]) -> list[tuple[str, str]]:
    """(table, reason) for every table of ``capture`` that cannot be read at all."""
    del compared
    found = []
    for vm in capture.vms:
        for mmu in vm.mmus:
            if mmu.unreadable is not None:
                found.append((f"{regime_name(mmu)} of {vm_title(vm)}", mmu.unreadable))
            elif not mmu.pgd_phys and mmu.kind is MmuKind.VM:
                found.append((f"{regime_name(mmu)} of {vm_title(vm)}", "it has no table (yet, or any more)"))
    return found


# --- live against modelled ---


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"


def _place(one: Difference) -> str:
    """``level 3 0x48003000[5], IPA 0x40005000-0x40006000 (1 x 4K)``."""
    found = one.where
    parts = []
    if found.table_pa is not None:
        at = f"[{found.index}]" if found.index is not None else ""
        parts.append(f"level {found.level} table {address(found.table_pa)}{at}")
    if found.ipa is not None:
        if found.size:
            each = size(found.size // one.entries)
            span = f"IPA {address(found.ipa)}-{address(found.ipa + found.size)} ({one.entries} x {each})"
        else:
            span = f"IPA {address(found.ipa)}"
        parts.append(span)
    return ", ".join(parts) or "the whole table"


def _side(sign: str, side: Side) -> str | None:
    """``- 0x0040… page PA 0x…, page_count 6``."""
    parts = []
    if side.entry is not None:
        parts.append(f"{raw(side.entry.raw)} {side.entry.describe()}" if side.entry.raw else f"{raw(0)} no entry")
    if side.page_count is not None:
        parts.append(f"page_count {side.page_count}")
    return f"    {sign} {', '.join(parts)}" if parts else None


def comparison(compared: Sequence[Comparison], kernel: KernelCode, capture: Capture, paint: Painter = PLAIN) -> Lines:
    """Each table: identical, or what differs; then the verdict."""
    for one in compared:
        what = f"{count(one.leaves, 'leaf').replace('leafs', 'leaves')} in {count(one.tables, 'table')}"
        if one.identical:
            yield f"{paint(one.view.title, 'bold')}: {what}, " + paint("identical", "green")
            continue
        said = f"{count(one.errors, 'error')}, {count(one.notes, 'note')}"
        yield f"{paint(one.view.title, 'bold')}: {what}, {said}"
        for found in one.shown:
            yield f"  {paint(found.severity.value, _COLORS[found.severity])} {_place(found)}"
            for sign, side, color in (("-", found.live, "red"), ("+", found.model, "green")):
                line = _side(sign, side)
                if line is not None:
                    yield paint(line, color)
            yield f"    what  {found.what}"
            yield f"    why   {found.why}" + (f" [{found.function}]" if found.function else "")
        if one.omitted:
            yield f"  and {count(one.omitted, 'more difference')}"
    for title, reason in skipped(capture, compared):
        yield f"{paint(title, 'bold')}: not compared: {reason}"
    errors = sum(one.errors for one in compared)
    notes = sum(one.notes for one in compared)
    yield f"- is live, + is what the model of {kernel.text}, makes of the same mappings"
    yield "whether they are the right mappings (memslots, what backs them) is what 'inspector check' judges"
    verdict = f"{count(errors, 'error')}, {count(notes, 'note')} in {count(len(compared), 'tree')}"
    yield paint(verdict, "bold red" if errors else "bold green")


def _side_document(side: Side) -> Document:
    entry = side.entry
    return {
        "raw": None if entry is None else raw(entry.raw),
        "text": None if entry is None else entry.describe() if entry.raw else "no entry",
        "page_count": side.page_count,
    }


def _difference(one: Difference) -> Document:
    return {
        "kind": one.kind,
        "severity": one.severity.value,
        "where": where(one.where),
        "entries": one.entries,
        "live": _side_document(one.live),
        "model": _side_document(one.model),
        "what": one.what,
        "why": one.why,
        "function": one.function,
    }


def comparison_document(compared: Sequence[Comparison], kernel: KernelCode, capture: Capture) -> Document:
    """`inspector diff`."""
    return envelope(
        "diff",
        behaviours=behaviours(kernel),
        errors=sum(one.errors for one in compared),
        notes=sum(one.notes for one in compared),
        tables=[
            {
                "vm": one.view.vm.name,
                "pid": one.view.vm.pid,
                "vmm": one.view.vm.command,
                "regime": one.view.regime,
                "root": _hex(one.view.root_pa),
                "leaves": one.leaves,
                "table_pages": one.tables,
                "identical": one.identical,
                "errors": one.errors,
                "notes": one.notes,
                "differences": [_difference(found) for found in one.shown],
                "omitted": one.omitted,
            }
            for one in compared
        ],
        not_compared=[{"table": title, "reason": reason} for title, reason in skipped(capture, compared)],
    )


# --- capture against capture ---


def _fact(one: Change) -> Lines:
    if one.before is not None and one.after is not None and "\n" not in one.before and len(one.before) < 24:
        yield f"  {one.what}: {one.before} -> {one.after}"
        return
    if one.before is not None:
        yield f"  - {one.what}: {one.before}"
    if one.after is not None:
        yield f"  + {one.what}: {one.after}"


def _attributes(leaf: Descriptor) -> str:
    """What `describe` says of a leaf after its address."""
    return leaf.describe().removeprefix(f"{leaf.kind.value} PA {leaf.output_address:#x}").strip()


def _range(sign: str, found: Range) -> str:
    each = f"{found.leaves} x {size(found.size // found.leaves)}"
    where_ = f"IPA {address(found.ia)}-{address(found.ia + found.size)} -> PA {address(found.pa)}"
    return f"    {sign} {where_} ({each}) {_attributes(found.attrs)} {raw(found.attrs.raw)}"


def _mapping(one: MappingChange, paint: Painter) -> Lines:
    if one.before is not None:
        yield paint(_range("-", one.before), "red")
    if one.after is not None:
        yield paint(_range("+", one.after), "green")


def _table(one: TableChange, paint: Painter) -> Lines:
    yield (
        f"  {one.regime}: {count(one.removed, 'leaf entry').replace('entrys', 'entries')} removed, {one.added} added, "
        f"{one.changed} changed; {count(len(one.allocated), 'table')} allocated, {len(one.freed)} freed"
    )
    for mapping in one.mappings:
        yield from _mapping(mapping, paint)
    if one.omitted:
        yield f"    and {count(one.omitted, 'more changed range')}"
    for sign, pages in (("-", one.freed), ("+", one.allocated)):
        if pages:
            more = "" if len(pages) <= 8 else f" and {len(pages) - 8} more"
            yield f"    {sign} tables at " + ", ".join(address(pa) for pa in pages[:8]) + more
    for change in one.counts:
        yield f"    {change.what}, entries unchanged: {change.before} -> {change.after}"


def changes(found: Changes, paint: Painter = PLAIN) -> Lines:
    """What differs between two captures."""
    yield f"- {found.before.made}, + {found.after.made}"
    if found.other_boot:
        yield "these are two boots (or two kernels): VMs are matched by name, addresses mean nothing across them"
    for change in found.host:
        yield from _fact(change)
    signs = {"gone": ("- ", "red", " is gone"), "came": ("+ ", "green", " is new"), "changed": ("", "bold", "")}
    for vm in found.vms:
        sign, color, suffix = signs[vm.kind]
        yield paint(f"{sign}{vm_title(vm.vm)}{suffix}", color)
        for fact in vm.facts:
            yield from _fact(fact)
        for table in vm.tables:
            yield from _table(table, paint)
    unchanged = len({vm.name for vm in found.after.vms} - {vm.name for vm in found.vms})
    if found.same:
        yield paint(f"nothing differs in {count(len(found.after.vms), 'VM')}", "bold green")
    else:
        totals = {kind: sum(vm.kind == kind for vm in found.vms) for kind in ("changed", "came", "gone")}
        said = f"{totals['changed']} changed, {totals['came']} new, {totals['gone']} gone, {unchanged} unchanged"
        yield paint(f"VMs: {said}", "bold")


def _change_document(one: Change) -> Document:
    return {"what": one.what, "before": one.before, "after": one.after}


def _range_document(found: Range | None) -> Document | None:
    if found is None:
        return None
    return {
        "ipa": _hex(found.ia),
        "size": found.size,
        "level": found.level,
        "pa": _hex(found.pa),
        "leaves": found.leaves,
        "raw": raw(found.attrs.raw),
        "text": found.attrs.describe(),
    }


def _vm_document(one: VmChange) -> Document:
    return {
        "vm": one.name,
        "pid": one.vm.pid,
        "vmm": one.vm.command,
        "kind": one.kind,
        "facts": [_change_document(fact) for fact in one.facts],
        "tables": [
            {
                "regime": table.regime,
                "removed": table.removed,
                "added": table.added,
                "changed": table.changed,
                "mappings": [
                    {"before": _range_document(m.before), "after": _range_document(m.after)} for m in table.mappings
                ],
                "omitted": table.omitted,
                "allocated": [_hex(pa) for pa in table.allocated],
                "freed": [_hex(pa) for pa in table.freed],
                "page_counts": [_change_document(change) for change in table.counts],
            }
            for table in one.tables
        ],
    }


def changes_document(found: Changes) -> Document:
    """`inspector diff A B`."""
    return envelope(
        "diff",
        before=found.before.made,
        after=found.after.made,
        other_boot=found.other_boot,
        same=found.same,
        host=[_change_document(change) for change in found.host],
        vms=[_vm_document(vm) for vm in found.vms],
    )


# --- the model on a script ---


def model(steps: Sequence[StepResult], paint: Painter = PLAIN) -> Lines:
    """Each operation of a script: what it returned, its events, the table afterwards."""
    for step in steps:
        for line in step.lines():
            yield paint(line, "bold") if line.startswith(f"{step.line}: ") else line
        yield ""


def model_document(steps: Sequence[StepResult]) -> Document:
    """`inspector model`."""
    return envelope(
        "model",
        steps=[
            {
                "line": step.line,
                "comment": list(step.comment),
                "operation": step.text,
                "generation": step.setup.generation,
                "proven": step.setup.behaviours.cross_checked,
                "returns": step.result_text() if step.operation is not None else None,
                "events": list(step.events),
                "table": list(step.table),
            }
            for step in steps
        ],
    )
