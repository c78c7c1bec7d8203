"""Captures and verdicts as text: every function gives lines, none prints.

Shape of the whole: a title that names the regime, then what is in it.  A raw descriptor always stands beside its
decoding, with the table address and index it was read from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from inspector.capture.view import TableView, regime_name, vm_title
from inspector.codec import Descriptor, has_e2h, table_address, vttbr
from inspector.findings import Finding, Severity, Where
from inspector.generations import code_of
from inspector.report.format import (
    PLAIN,
    SHAREABILITY,
    Painter,
    address,
    columns,
    count,
    fields,
    long_columns,
    raw,
    size,
)
from inspector.report.leaves import ByPattern, attribute_mask
from inspector.report.sysregs import register_text
from inspector.report.window import Window
from inspector.snapshot import Capture, CpuState, Memslot, Mmu, MmuKind, Mode, PageState, Vm
from inspector.tables import Entry, Problem, RangeTable, Translation, entries, merged_ranges

Lines = Iterator[str]

_SLOT_FLAGS = {0: "log-dirty", 1: "read-only", 2: "guest-memfd", 16: "invalid"}


def slot_flags(flags: int) -> str:
    """``log-dirty,read-only``; unknown bits by number; ``-`` for none."""
    names = [_SLOT_FLAGS.get(bit, f"bit{bit}") for bit in range(flags.bit_length()) if flags >> bit & 1]
    return ",".join(names) or "-"


# --- info, registers ---


def info(capture: Capture, paint: Painter = PLAIN) -> Lines:
    """The host."""
    host = capture.host
    cpus = ", ".join(f"{cpu.index}: {_running(cpu)}" for cpu in host.cpus)
    rows = [
        ("kernel", host.release),
        ("banner", host.banner),
        ("build id", host.build_id or "unknown"),
        ("symbols", host.symbols),
        ("KASLR slide", address(host.kaslr_slide)),
        ("image", f"{address(host.image_pa[0])}-{address(host.image_pa[1])} (PA)"),
        ("mode", {Mode.NONE: "KVM is not initialised"}.get(host.mode, host.mode)),
        ("page size", size(host.page_size)),
        ("VA bits", str(host.va_bits)),
        ("features", " ".join(f"{name}={value}" for name, value in sorted(host.features.items())) or "-"),
        ("traits", " ".join(sorted(name for name, has in host.traits.items() if has)) or "-"),
        ("behaviours", code_of(host).text),
        ("RAM", ", ".join(f"{address(a)}-{address(b)} ({size(b - a)})" for a, b in host.ram)),
        ("memory", f"read by {host.memory_backend}, machine stopped for {capture.stopped_seconds * 1000:.0f} ms"),
        ("CPUs", cpus),
        ("VMs", str(len(capture.vms))),
        ("taken", f"{capture.made} by {capture.tool}"),
    ]
    yield from columns(("", ""), [(paint(f"{name:11}", "bold"), value) for name, value in rows])
    for note in host.notes:
        yield f"note: {note}"


def _running(cpu: CpuState) -> str:
    return cpu.running + (f" in {cpu.symbol}" if cpu.symbol else "")


def registers(capture: Capture, paint: Painter = PLAIN) -> Lines:
    """Every captured register of every CPU, decoded where its fields are known."""
    for cpu in capture.host.cpus:
        live = "VTTBR_EL2 is in force" if cpu.vttbr_live else "VTTBR_EL2 is stale: no guest's stage-2 is in force"
        yield paint(f"CPU {cpu.index}: {_running(cpu)}; {live}", "bold")
        vhe = has_e2h(cpu.registers)
        rows = [(name, raw(value), register_text(name, value, vhe)) for name, value in sorted(cpu.registers.items())]
        yield from columns(("", "", ""), rows, indent="  ")


# --- vms, memslots ---


def geometry_text(mmu: Mmu) -> str:
    """``40-bit IPA, 4K granule, level 1, 2 roots``."""
    return "geometry unknown" if mmu.geometry is None else mmu.geometry.describe()


def _mmu(mmu: Mmu, vm: Vm, capture: Capture, paint: Painter) -> Lines:
    yield "  " + paint(regime_name(mmu), "cyan") + f", struct kvm_s2_mmu at {address(mmu.address)}"
    if mmu.unreadable is not None:
        yield f"    cannot be shown: {mmu.unreadable}"
        return
    yield f"    {geometry_text(mmu)}"
    value = vttbr(mmu.pgd_phys, mmu.vmid or 0, False) if _fits(mmu) else None
    if value is not None:
        said = f"VMID={mmu.vmid or 0} BADDR={address(mmu.pgd_phys)} (as KVM computes it, CnP aside)"
        yield f"    VTTBR_EL2 {raw(value)}  {said}"
    yield f"    VTCR_EL2  {raw(mmu.vtcr)}  {register_text('vtcr_el2', mmu.vtcr)}"
    if mmu.kind is MmuKind.SHADOW and mmu.nested_vttbr is not None:
        state = "in use" if mmu.nested_valid else "not in use"
        yield f"    for the guest's VTTBR_EL2 {raw(mmu.nested_vttbr)} VTCR_EL2 {raw(mmu.nested_vtcr or 0)}, {state}"
    for cpu in capture.host.cpus:
        held = cpu.registers.get("VTTBR_EL2")
        if cpu.vttbr_live and held is not None and mmu.pgd_phys and table_address(held) == mmu.pgd_phys:
            yield f"    in force on CPU {cpu.index}: VTTBR_EL2 {raw(held)}  {register_text('vttbr_el2', held)}"


def _fits(mmu: Mmu) -> bool:
    return bool(mmu.pgd_phys) and not mmu.pgd_phys >> 52 and not mmu.pgd_phys & 0x3F and (mmu.vmid or 0) < 1 << 16


def vms(capture: Capture, paint: Painter = PLAIN) -> Lines:
    """Every VM with its MMUs, slots and vCPUs."""
    if not capture.vms:
        yield "no VMs"
    for vm in capture.vms:
        found = " and ".join(vm.found_by)
        yield paint(vm_title(vm), "bold") + f", struct kvm at {address(vm.address)}, found by {found}"
        for mmu in vm.mmus:
            yield from _mmu(mmu, vm, capture, paint)
        total = sum(slot.npages for slot in vm.memslots) * capture.host.page_size
        yield f"  {count(len(vm.memslots), 'memslot')}, {size(total)}"
        for vcpu in vm.vcpus:
            where = "not loaded" if vcpu.loaded_on is None else f"loaded on CPU {vcpu.loaded_on}"
            yield f"  vCPU {vcpu.id}: {where}, struct kvm_vcpu at {address(vcpu.address)}"
        if vm.invalidating:
            yield "  an MMU-notifier invalidation is in progress"


def memslots(capture: Capture, paint: Painter = PLAIN) -> Lines:
    """The slots of every VM, with what backs them where the capture knows it."""
    page = capture.host.page_size
    for vm in capture.vms:
        yield paint(vm_title(vm), "bold")
        rows = []
        for slot in sorted(vm.memslots, key=lambda s: (s.as_id, s.base_gfn)):
            start, length = slot.base_gfn * page, slot.npages * page
            rows.append(
                (
                    str(slot.id),
                    address(start),
                    address(start + length),
                    size(length),
                    address(slot.userspace_addr),
                    slot_flags(slot.flags),
                    "yes" if slot.dirty_bitmap else "no",
                    _backing(slot),
                )
            )
        head = ("slot", "IPA", "end", "size", "HVA", "flags", "dirty bitmap", "backing")
        yield from columns(head, rows, right=(0, 3), indent="  ", paint=paint) or ["  no memslots"]


def _backing(slot: Memslot) -> str:
    totals: dict[str, int] = {}
    for run in slot.backing:
        totals[run.state] = totals.get(run.state, 0) + run.size
    return ", ".join(f"{size(total)} {state}" for state, total in sorted(totals.items())) or "-"


# --- dump ---


def attribute_cells(leaf: Descriptor) -> tuple[str, str, str, str, str]:
    """Permissions, memory type, shareability, AF and software bits as cells."""
    share = SHAREABILITY[leaf.shareability] if not leaf.geometry.lpa2 else "-"
    return leaf.permissions, leaf.memory_type, share, "AF" if leaf.af else "-", f"{leaf.sw:#x}" if leaf.sw else "-"


_RANGE_HEAD = ("IPA", "end", "size", "level", "PA", "perm", "memory", "share", "AF", "SW", "leaves", "first descriptor")


def shown_ranges(view: TableView, window: Window) -> RangeTable:
    """The merged ranges of ``view`` inside ``window``."""
    found = merged_ranges(view.tree)
    assert isinstance(found, RangeTable)
    return window.of(found)


def _range_columns(found: RangeTable) -> list[list[str]]:
    """The cells of `_RANGE_HEAD`, column by column: a big guest has a quarter of a million ranges."""
    hexes = [[f"{value:#x}" for value in column.tolist()] for column in (found.ia, found.ia + found.size, found.pa)]
    sizes = {value: size(value) for value in np.unique(found.size).tolist()}
    each = np.stack((found.leaves, found.size // found.leaves), axis=1)
    kinds = {tuple(pair): f"{pair[0]} x {size(pair[1])}" for pair in np.unique(each, axis=0).tolist()}
    cells = ByPattern(found.geometry, attribute_cells)
    attributes = _by_pattern(found, cells)
    return [
        hexes[0],
        hexes[1],
        [sizes[value] for value in found.size.tolist()],
        [str(level) for level in found.level.tolist()],
        hexes[2],
        *attributes,
        [kinds[pair] for pair in zip(*each.T.tolist(), strict=True)],
        [f"{value:#018x}" for value in found.raw.tolist()],
    ]


def _by_pattern(found: RangeTable, cells: Callable[[Descriptor], tuple[str, ...]]) -> list[list[str]]:
    """The attribute cells of every range as columns; computed once a level and pattern of attributes."""
    key = (found.raw & np.uint64(attribute_mask(found.geometry))) | found.level.astype(np.uint64) << np.uint64(
        found.geometry.granule_shift
    )
    _, first, which = np.unique(key, return_index=True, return_inverse=True)
    known = [cells(found[int(at)].attrs) for at in first]
    rows = which.reshape(-1).tolist()
    return [[known[row][number] for row in rows] for number in range(5)]


def problem_text(problem: Problem) -> str:
    """One line: place, kind, detail, and the raw entry."""
    at = f"[{problem.index}]" if problem.index is not None else ""
    value = f" {raw(problem.raw)}" if problem.raw is not None else ""
    place = f"level {problem.level} table {address(problem.table_pa)}{at}{value}, IPA {address(problem.ia)}"
    return f"{problem.kind}: {place}: {problem.detail}"


def dump(views: Sequence[TableView], window: Window, paint: Painter = PLAIN) -> Lines:
    """Each table as merged ranges."""
    for view in views:
        found = shown_ranges(view, window)
        tables = count(len(view.tree.tables), "table")
        yield paint(view.title, "bold") + f": root {address(view.root_pa)}, {geometry_text(view.mmu)}, {tables}"
        if len(found):
            yield from long_columns(_RANGE_HEAD, _range_columns(found), right=(2, 3, 10), indent="  ", paint=paint)
        else:
            yield "  nothing mapped" if window.whole else "  nothing mapped that matches"
        for problem in view.tree.problems:
            yield "  " + paint(problem_text(problem), "red")


def dump_tree(views: Sequence[TableView], window: Window, paint: Painter = PLAIN) -> Lines:
    """Each table page with its PA, reference count and non-zero entries, in the order of the kernel's walk."""
    for view in views:
        yield paint(view.title, "bold") + f": root {address(view.root_pa)}, {geometry_text(view.mmu)}"
        for root in view.root_pages():
            yield "  " + table_text(view, root, view.geometry.start_level)
        start = view.geometry.start_level
        rest = ByPattern(view.geometry, _rest)
        for entry in shown_entries(view, window):
            indent = "  " * (2 + entry.level - start)
            yield f"{indent}{entry_text(entry, rest)}"
            child = entry.descriptor.output_address
            if entry.descriptor.kind.value == "table" and child is not None:
                yield "  " * (2 + entry.level - start) + paint("  " + table_text(view, child, entry.level + 1), "cyan")
        for problem in view.tree.problems:
            yield "  " + paint(problem_text(problem), "red")


def shown_entries(view: TableView, window: Window) -> Iterator[Entry]:
    """Entries in walk order: all, or the leaves of ``window`` with the tables that lead to their addresses."""
    window = window.remembering(view.geometry)
    for entry in entries(view.tree):
        if entry.descriptor.kind.is_leaf:
            if window.accepts_leaf(entry.ia, entry.descriptor):
                yield entry
        elif window.ipa.meets(entry.ia, entry.descriptor.size):
            yield entry


def table_text(view: TableView, pa: int, level: int) -> str:
    """``level 2 table at 0x48001000, page_count 3``."""
    known = view.capture.page_info.get(pa)
    if known is None:
        return f"level {level} table at {address(pa)}, page_count unknown"
    state = "" if known.state is PageState.USED else f", page is {known.state}"
    return f"level {level} table at {address(pa)}, page_count {known.refcount}{state}"


def _rest(found: Descriptor) -> str:
    """What `describe` says of a leaf after its address."""
    return found.describe().removeprefix(f"{found.kind.value} PA {found.output_address:#x}")


def entry_text(entry: Entry, rest: Callable[[Descriptor], str] = _rest) -> str:
    """``L3 0x48002000[1] 0x00400000481237db IPA 0x40001000: page PA …``."""
    place = f"{address(entry.table_pa)}[{entry.index}]"
    found = entry.descriptor
    said = f"{found.kind.value} PA {found.output_address:#x}{rest(found)}" if found.kind.is_leaf else found.describe()
    return f"L{entry.level} {place:20} {raw(found.raw)} IPA {address(entry.ia)}: {said}"


# --- walk, reverse ---


def walk(view: TableView, translation: Translation, paint: Painter = PLAIN) -> Lines:
    """The translation of one address, level by level, as crash's ``vtop`` shows it."""
    yield paint(view.title, "bold") + f": IPA {address(translation.ia)}"
    yield f"  {geometry_text(view.mmu)}"
    for step in translation.steps:
        if step.root_page is not None:
            number = f"{step.root_page} of {view.geometry.root_pages}"
            yield f"  root page {number} at {address(step.table_pa)} (root {address(view.root_pa)})"
        yield (
            f"  L{step.level} {address(step.table_pa)}[{step.index}] at {address(step.entry_pa)} => "
            f"{paint(raw(step.descriptor.raw), 'cyan')}  {step.descriptor.describe()}"
        )
        yield f"     {fields(step.descriptor.fields.items())}"
    yield "  " + paint(translation.verdict, "green" if translation.pa is not None else "red")


def backing_lines(capture: Capture, vm: Vm, ipa: int, pa: int | None) -> Lines:
    """Which slot ``ipa`` is in, and what the VMM's own page tables have there, where the capture knows it."""
    page = capture.host.page_size
    for slot in vm.memslots:
        offset = ipa - slot.base_gfn * page
        if not 0 <= offset < slot.npages * page:
            continue
        hva = slot.userspace_addr + offset
        yield f"  slot {slot.id} ({slot_flags(slot.flags)}): HVA {address(hva)}"
        for run in slot.backing:
            if run.hva <= hva < run.hva + run.size:
                yield "  " + _backing_verdict(run.pa, run.state, hva - run.hva, pa)
        return
    yield "  in no memslot"


def _backing_verdict(base: int | None, state: str, offset: int, pa: int | None) -> str:
    if base is None:
        return f"the VMM's page tables: {state}"
    actual = base + offset
    if pa is None:
        return f"the VMM's page tables: PA {address(actual)}"
    same = "the same page" if actual == pa else "NOT the page that the guest has"
    return f"the VMM's page tables: PA {address(actual)}, {same}"


def reverse(pa: int, found: Sequence[tuple[TableView, list[tuple[int, Entry]]]], paint: Painter = PLAIN) -> Lines:
    """Which guests map ``pa``, and whether it is itself a table."""
    anything = False
    for view, hits in found:
        for table in view.tree.tables:
            if table.pa <= pa < table.pa + view.geometry.granule:
                anything = True
                place = f"level {table.level} table for IPA {address(table.ia)}, page_count"
                known = view.capture.page_info.get(table.pa)
                number = known.refcount if known else "unknown"
                yield f"PA {address(pa)} is in a table of {view.title}: {place} {number}"
        for ipa, entry in hits:
            anything = True
            yield paint(view.title, "bold") + f": IPA {address(ipa)}"
            yield f"  {entry_text(entry)}"
    if not anything:
        yield f"no guest maps PA {address(pa)}"


# --- decode ---


def descriptor(found: Descriptor) -> Lines:
    """One descriptor, decoded."""
    yield f"{raw(found.raw)} at level {found.level}: {found.describe()}"
    rows = []
    for name, value in found.fields.items():
        source = found.layout.by_name[name].source if name in found.layout.by_name else "bits without a name"
        rows.append((name, f"{value:#x}", source))
    yield from columns(("field", "value", "source"), rows, right=(1,), indent="  ")


# --- findings ---


def where(place: Where) -> str:
    """A place in words, largest part first."""
    parts = [part for part in (place.vm, place.regime) if part]
    if place.ipa is not None:
        parts.append(f"IPA {address(place.ipa)}" + (f" ({size(place.size)})" if place.size else ""))
    if place.level is not None:
        parts.append(f"level {place.level}")
    if place.table_pa is not None:
        parts.append(f"table {address(place.table_pa)}" + (f"[{place.index}]" if place.index is not None else ""))
    if place.raw is not None:
        parts.append(raw(place.raw))
    return ", ".join(parts) or "host"


def findings(found: Sequence[Finding], checked: Mapping[str, str], capture: Capture, paint: Painter = PLAIN) -> Lines:
    """Every finding with its reasons, then the verdict.  ``checked`` are the ids that ran, with their statements."""
    colors = {Severity.ERROR: "bold red", Severity.NOTE: "yellow"}
    for one in found:
        yield paint(f"{one.severity.value} {one.check}", colors[one.severity]) + f" {where(one.where)}"
        yield f"  expected  {one.expected}"
        yield f"  actual    {one.actual}"
        yield f"  why       {one.why}" + (f" [{one.function}]" if one.function else "")
    errors = sum(one.severity is Severity.ERROR for one in found)
    what = f"{count(len(capture.vms), 'VM')}, {count(len(checked), 'check')} ({', '.join(checked)})"
    verdict = f"{count(errors, 'error')}, {count(len(found) - errors, 'note')} in {what}"
    yield paint(verdict, "bold red" if errors else "bold green")
