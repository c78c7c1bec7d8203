"""Captures and verdicts as JSON documents: one function a command, described by ``schema.json`` and docs/schema.md.

Addresses, raw descriptors and registers are ``"0x..."`` strings (a JSON number above 2**53 is not safe in every
reader); counts, sizes, levels, indexes and VMIDs are numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any

import inspector
from inspector.capture.view import TableView, regime_name
from inspector.check.catalogue import Invariant, Unseen
from inspector.codec import Descriptor, decode_register, has_e2h, is_known
from inspector.findings import Finding, Severity, Where
from inspector.generations import KernelCode, code_of
from inspector.report import sysregs, text
from inspector.report.format import SHAREABILITY
from inspector.report.leaves import ByPattern
from inspector.report.window import Window
from inspector.snapshot import SCHEMA, Capture, Memslot, Mmu, MmuKind, Vm
from inspector.tables import Entry, Problem, Range, Translation

Document = dict[str, Any]


def schema() -> Document:
    """The JSON Schema that every document of this version satisfies."""
    loaded: Document = json.loads(files("inspector.report").joinpath("schema.json").read_text())
    return loaded


def envelope(command: str, **payload: Any) -> Document:
    """What every document begins with."""
    return {"schema": SCHEMA, "tool": f"kvm-stage2-inspector {inspector.__version__}", "command": command, **payload}


def _hex(value: int | None) -> str | None:
    return None if value is None else f"{value:#x}"


def _raw(value: int) -> str:
    return f"{value:#018x}"


def _registers(values: Mapping[str, int]) -> Document:
    return {name: _raw(value) for name, value in sorted(values.items())}


def _register(name: str, value: int) -> Document:
    return {"value": _raw(value), "fields": dict(decode_register(name, value))}


# --- info, registers, vms, memslots ---


def behaviours(kernel: KernelCode) -> Document:
    """Which model stands for a kernel, and how that is known."""
    return {
        "generation": kernel.label,
        "how": kernel.how,
        "assumed": kernel.assumed,
        "chosen": kernel.chosen,
        "proven": kernel.cross_checked,
    }


def info(capture: Capture) -> Document:
    """`inspector info`."""
    host = capture.host
    return envelope(
        "info",
        host={
            "release": host.release,
            "banner": host.banner,
            "build_id": host.build_id,
            "symbols": host.symbols,
            "kaslr_slide": _hex(host.kaslr_slide),
            "image_pa": [_hex(host.image_pa[0]), _hex(host.image_pa[1])],
            "mode": host.mode,
            "page_size": host.page_size,
            "va_bits": host.va_bits,
            "features": dict(sorted(host.features.items())),
            "traits": dict(sorted(host.traits.items())),
            "ram": [[_hex(start), _hex(end)] for start, end in host.ram],
            "memory_backend": host.memory_backend,
            "notes": list(host.notes),
            "behaviours": behaviours(code_of(host)),
        },
        cpus=[
            {"index": cpu.index, "running": cpu.running, "symbol": cpu.symbol, "vttbr_live": cpu.vttbr_live}
            for cpu in host.cpus
        ],
        vms=len(capture.vms),
        stopped_seconds=capture.stopped_seconds,
        made=capture.made,
        made_by=capture.tool,
    )


def registers(capture: Capture) -> Document:
    """`inspector registers`."""
    cpus = []
    for cpu in capture.host.cpus:
        vhe = has_e2h(cpu.registers)
        decoded = {
            name: dict(decode_register(name, value, vhe))
            for name, value in sorted(cpu.registers.items())
            if is_known(name)
        }
        cpus.append(
            {
                "index": cpu.index,
                "running": cpu.running,
                "symbol": cpu.symbol,
                "vttbr_live": cpu.vttbr_live,
                "registers": _registers(cpu.registers),
                "decoded": decoded,
            }
        )
    return envelope("registers", cpus=cpus)


def _mmu(mmu: Mmu) -> Document:
    geometry = mmu.geometry
    return {
        "regime": regime_name(mmu),
        "kind": mmu.kind,
        "address": _hex(mmu.address),
        "vmid": mmu.vmid,
        "vmid_raw": _hex(mmu.vmid_raw),
        "pgd_phys": _hex(mmu.pgd_phys),
        "pgd_pa": _hex(mmu.pgd_pa),
        "vtcr": _register("vtcr_el2", mmu.vtcr),
        "ia_bits": mmu.ia_bits,
        "start_level": mmu.start_level,
        "pgt_flags": mmu.pgt_flags,
        "geometry": None
        if geometry is None
        else {
            "granule": geometry.granule,
            "ia_bits": geometry.ia_bits,
            "start_level": geometry.start_level,
            "root_pages": geometry.root_pages,
            "pa_bits": geometry.pa_bits,
            "lpa2": geometry.lpa2,
        },
        "unreadable": mmu.unreadable,
        "nested_valid": mmu.nested_valid,
        "nested_vttbr": _hex(mmu.nested_vttbr),
        "nested_vtcr": _hex(mmu.nested_vtcr),
    }


def vms(capture: Capture) -> Document:
    """`inspector vms`."""
    return envelope(
        "vms",
        vms=[
            {
                "name": vm.name,
                "address": _hex(vm.address),
                "pid": vm.pid,
                "fd": vm.fd,
                "vmm": vm.command,
                "found_by": list(vm.found_by),
                "invalidating": vm.invalidating,
                "mmus": [_mmu(mmu) for mmu in vm.mmus],
                "memslots": len(vm.memslots),
                "memory": sum(slot.npages for slot in vm.memslots) * capture.host.page_size,
                "vcpus": [
                    {"id": v.id, "address": _hex(v.address), "loaded_on": v.loaded_on, "hw_mmu": _hex(v.hw_mmu)}
                    for v in vm.vcpus
                ],
            }
            for vm in capture.vms
        ],
    )


def _slot(slot: Memslot, page: int) -> Document:
    return {
        "id": slot.id,
        "as_id": slot.as_id,
        "ipa": _hex(slot.base_gfn * page),
        "size": slot.npages * page,
        "hva": _hex(slot.userspace_addr),
        "flags": text.slot_flags(slot.flags).split(",") if slot.flags else [],
        "dirty_bitmap": bool(slot.dirty_bitmap),
        "backing": [
            {
                "hva": _hex(run.hva),
                "size": run.size,
                "pa": _hex(run.pa),
                "state": run.state,
                "readable": run.readable,
                "writable": run.writable,
                "entry_size": run.entry_size,
            }
            for run in slot.backing
        ],
    }


def memslots(capture: Capture) -> Document:
    """`inspector memslots`."""
    page = capture.host.page_size
    return envelope(
        "memslots",
        vms=[
            {
                "name": vm.name,
                "memslots": [_slot(slot, page) for slot in sorted(vm.memslots, key=lambda s: (s.as_id, s.base_gfn))],
            }
            for vm in capture.vms
        ],
    )


# --- dump, walk, reverse, decode ---


def _leaf(found: Descriptor) -> Document:
    return {
        "read": found.readable,
        "write": found.writable,
        "execute": found.executable,
        "memory_type": found.memory_type,
        "shareability": None if found.geometry.lpa2 else SHAREABILITY[found.shareability],
        "af": found.af,
        "sw": found.sw,
    }


def _range(found: Range, leaf: Callable[[Descriptor], Document]) -> Document:
    return {
        "ipa": _hex(found.ia),
        "size": found.size,
        "level": found.level,
        "pa": _hex(found.pa),
        **leaf(found.attrs),
        "leaves": found.leaves,
        "raw": _raw(found.attrs.raw),
    }


def _problem(problem: Problem) -> Document:
    return {
        "kind": problem.kind,
        "table_pa": _hex(problem.table_pa),
        "index": problem.index,
        "level": problem.level,
        "ipa": _hex(problem.ia),
        "raw": None if problem.raw is None else _raw(problem.raw),
        "detail": problem.detail,
    }


def _entry(entry: Entry) -> Document:
    return {
        "table_pa": _hex(entry.table_pa),
        "index": entry.index,
        "level": entry.level,
        "ipa": _hex(entry.ia),
        **_descriptor(entry.descriptor),
    }


def _descriptor(found: Descriptor) -> Document:
    document: Document = {
        "raw": _raw(found.raw),
        "kind": found.kind.value,
        "pa": _hex(found.output_address),
        "fields": {name: _hex(value) for name, value in found.fields.items()},
        "text": found.describe(),
    }
    if found.kind.is_leaf:
        document["leaf"] = _leaf(found)
    return document


def _title(view: TableView) -> Document:
    return {
        "vm": view.vm.name,
        "pid": view.vm.pid,
        "vmm": view.vm.command,
        "regime": view.regime,
        "root": _hex(view.root_pa),
    }


def dump(views: Sequence[TableView], window: Window) -> Document:
    """`inspector dump`."""
    return envelope(
        "dump",
        tables=[
            {
                **_title(view),
                "table_pages": len(view.tree.tables),
                "ranges": [_range(found, leaf) for found in text.shown_ranges(view, window)],
                "problems": [_problem(problem) for problem in view.tree.problems],
            }
            for view, leaf in ((view, ByPattern(view.geometry, _leaf)) for view in views)
        ],
    )


def dump_tree(views: Sequence[TableView], window: Window) -> Document:
    """`inspector dump --tree`: table pages and entries, each in walk order."""
    tables = []
    for view in views:
        pages = []
        for table in view.tree.tables:
            known = view.capture.page_info.get(table.pa)
            pages.append(
                {
                    "pa": _hex(table.pa),
                    "level": table.level,
                    "ipa": _hex(table.ia),
                    "parent_pa": _hex(table.parent_pa),
                    "parent_index": table.parent_index,
                    "page_count": known.refcount if known else None,
                    "page_state": known.state if known else None,
                }
            )
        tables.append(
            {
                **_title(view),
                "pages": pages,
                "entries": [_entry(entry) for entry in text.shown_entries(view, window)],
                "problems": [_problem(problem) for problem in view.tree.problems],
            }
        )
    return envelope("dump", tables=tables)


def walk(view: TableView, translation: Translation) -> Document:
    """`inspector walk`."""
    return envelope(
        "walk",
        **_title(view),
        ipa=_hex(translation.ia),
        pa=_hex(translation.pa),
        verdict=translation.verdict,
        backing=_backing(view.capture, view.vm, translation.ia) if view.mmu.kind is MmuKind.VM else None,
        steps=[
            {
                "level": step.level,
                "root_page": step.root_page,
                "table_pa": _hex(step.table_pa),
                "index": step.index,
                "entry_pa": _hex(step.entry_pa),
                **_descriptor(step.descriptor),
            }
            for step in translation.steps
        ],
    )


def _backing(capture: Capture, vm: Vm, ipa: int) -> Document | None:
    """The slot of ``ipa`` and what the VMM's page tables have there; ``None`` when in no slot."""
    page = capture.host.page_size
    for slot in vm.memslots:
        offset = ipa - slot.base_gfn * page
        if 0 <= offset < slot.npages * page:
            hva = slot.userspace_addr + offset
            run = next((run for run in slot.backing if run.hva <= hva < run.hva + run.size), None)
            pa = run.pa + hva - run.hva if run is not None and run.pa is not None else None
            return {"slot": slot.id, "hva": _hex(hva), "pa": _hex(pa), "state": run.state if run else None}
    return None


def reverse(pa: int, found: Sequence[tuple[TableView, list[tuple[int, Entry]]]]) -> Document:
    """`inspector reverse`."""
    tables = [
        {**_title(view), "table_pa": _hex(table.pa), "level": table.level, "ipa": _hex(table.ia)}
        for view, _ in found
        for table in view.tree.tables
        if table.pa <= pa < table.pa + view.geometry.granule
    ]
    mappings = [
        {**_title(view), "at": _hex(ipa), "entry": _entry(entry)} for view, hits in found for ipa, entry in hits
    ]
    return envelope("reverse", pa=_hex(pa), mappings=mappings, tables=tables)


def decode_descriptor(found: Descriptor) -> Document:
    """`inspector decode VALUE`."""
    return envelope("decode", level=found.level, **_descriptor(found))


def decode_named_register(name: str, value: int, e2h: bool) -> Document:
    """`inspector decode --register NAME VALUE`."""
    return envelope("decode", **sysregs.register_facts(name, value, e2h))


# --- capture, check ---


def captured(path: str, capture: Capture, size: int) -> Document:
    """`inspector capture`."""
    return envelope(
        "capture",
        file=path,
        size=size,
        vms=len(capture.vms),
        table_pages=len(capture.pages),
        stopped_seconds=capture.stopped_seconds,
    )


def where(place: Where) -> Document:
    """The place of a finding."""
    return {
        "vm": place.vm,
        "regime": place.regime,
        "ipa": _hex(place.ipa),
        "size": place.size,
        "level": place.level,
        "table_pa": _hex(place.table_pa),
        "index": place.index,
        "raw": None if place.raw is None else _raw(place.raw),
    }


def finding(found: Finding) -> Document:
    """One finding."""
    return {
        "check": found.check,
        "severity": found.severity.value,
        "where": where(found.where),
        "expected": found.expected,
        "actual": found.actual,
        "why": found.why,
        "function": found.function,
    }


def check(found: Sequence[Finding], checked: Iterable[str], capture: Capture) -> Document:
    """`inspector check`."""
    errors = sum(one.severity is Severity.ERROR for one in found)
    return envelope(
        "check",
        checked=list(checked),
        vms=len(capture.vms),
        errors=errors,
        notes=len(found) - errors,
        findings=[finding(one) for one in found],
    )


def catalogue(invariants: Sequence[Invariant], unseen: Sequence[Unseen] = ()) -> Document:
    """`inspector check --list`; ``unseen`` are the rules that no single instant can show."""
    return envelope(
        "check",
        catalogue=[{"id": one.id, "statement": one.statement, "source": one.source} for one in invariants],
        not_shown=[
            {"id": one.id, "statement": one.statement, "source": one.source, "reason": one.reason} for one in unseen
        ],
    )
