"""M5 to M9: the attributes of leaves, held against what the memory is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.check.backing import GuestMemory
from inspector.check.catalogue import Judge, invariant
from inspector.check.context import Context
from inspector.check.ownership import Owned
from inspector.check.places import Span
from inspector.codec import Descriptor, Execute, MemoryType, Shareability
from inspector.codec.bulk import Flags
from inspector.findings import Finding
from inspector.generations import software_bits_used
from inspector.snapshot import MmuKind
from inspector.tables.intervals import Intervals

_SOFTWARE = 0xF << 55


def _uncached(descriptor: Descriptor) -> bool:
    return descriptor.memory_type in (MemoryType.DEVICE, MemoryType.NORMAL_NC)


def _cached(descriptor: Descriptor) -> bool:
    return descriptor.memory_type == MemoryType.NORMAL


# --- M5: execution ---


@invariant(
    "M5",
    "Device and non-cacheable memory is execute-never, and a VM's own table lets both of the guest's exception levels "
    "execute a page, or neither.",
    "stage2_set_prot_attr, stage2_set_xn_attr; user_mem_abort (-ENOEXEC)",
    function="xn",
    form=True,
)
def execution(rule: Judge, context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        device = owned.matching(_uncached)
        for span in owned.spans(device & owned.matching(lambda d: d.executable is not Execute.NEVER)):
            yield rule.error(
                span,
                "execute-never: it is device or non-cacheable memory",
                f"{span.raw}, executable",
                "the guest's CPU may fetch from a device on its own, speculatively: a read with side effects",
            )
        if owned.view.mmu.kind is not MmuKind.VM:
            continue  # shadow tables carry what the guest's own stage 2 says
        partly = owned.matching(lambda d: d.executable in (Execute.PRIVILEGED, Execute.UNPRIVILEGED))
        for span in owned.spans(~device & partly):
            yield rule.error(
                span,
                "XN[54:53] 00 or 10",
                span.raw,
                "KVM knows only pages to execute and pages not to: one exception level has a right it was not given",
            )


# --- M6: memory types ---


def _never_written(context: Context, owned: Owned) -> Flags:
    """Memory types that this kernel writes in no guest's table (kernel.md 1.3)."""
    known = {MemoryType.NORMAL, MemoryType.DEVICE}
    known |= {MemoryType.NORMAL_NC} if context.code.behaviours.normal_nc else set()
    return owned.matching(lambda d: d.kind.is_leaf and d.memory_type not in known)


def _what(span: Span) -> str:
    return f"{span.raw}, {span.pattern.memory_type}, PA {span.output:#x}"


@invariant(
    "M6",
    "RAM is mapped Normal write-back, anything else Device (non-cacheable where its driver allows it, write-back where "
    "the VMM's own mapping is), in the encoding that FWB asks for; and no page has two cacheabilities.",
    "DDI 0487 D8.6.5-6; stage2_set_prot_attr, user_mem_abort: pfn_is_map_memory",
    function="user_mem_abort",
)
def memory_types(rule: Judge, context: Context) -> Iterator[Finding]:
    any_cacheable = context.code.behaviours.cacheable_pfnmap and bool(context.capture.host.features.get("fwb"))
    for owned in context.owned:
        for span in owned.spans(_never_written(context, owned)):
            yield rule.error(
                span,
                "MemAttr of Normal write-back or Device-nGnRE, as KVM encodes them",
                f"{span.raw}, {span.pattern.memory_type}",
                f"KVM never writes it with FWB {int(owned.view.format.fwb)}",
                "attributes",
            )
    mixed: list[tuple[GuestMemory, Flags, Flags]] = []
    for guest in context.guests:
        owned, columns = guest.owned, guest.owned.columns
        sound = guest.sound & ~_never_written(context, owned)
        uncached, cached = owned.matching(_uncached), owned.matching(_cached)
        as_device = sound & guest.pieces.ordinary & uncached
        as_device = columns.among(as_device, lambda c: context.ram.touch(c.output, c.size))
        for span in owned.spans(as_device):
            yield rule.error(
                span,
                "Normal write-back: it is RAM",
                _what(span),
                "the guest's writes bypass caches that the host and its devices read and write the page through",
            )
        as_normal = np.zeros_like(sound) if any_cacheable else sound & cached
        as_normal = columns.among(as_normal, lambda c: ~context.ram.contain(c.output, c.size))
        for span in owned.spans(as_normal):
            yield rule.error(
                span,
                "Device or non-cacheable: it is not RAM",
                _what(span),
                "speculative and gathered accesses reach a device, with whatever effect they have there",
            )
        mixed.append((guest, sound & ~as_device & uncached, sound & ~as_normal & cached))
    yield from _mixed(rule, mixed)


def _mixed(rule: Judge, leaves: list[tuple[GuestMemory, Flags, Flags]]) -> Iterator[Finding]:
    """Write-back leaves on memory that another leaf, of whichever VM, maps uncached."""
    parts = [(guest.owned.columns, uncached) for guest, uncached, _ in leaves if uncached.any()]
    if not parts:
        return
    some = [columns.at(uncached) for columns, uncached in parts]
    start = np.concatenate([one.output for one in some])
    devices = Intervals.union(start, start + np.concatenate([one.size for one in some]))
    for guest, _, cached in leaves:
        columns = guest.owned.columns
        for span in guest.owned.spans(columns.among(cached, lambda c: devices.touch(c.output, c.size))):
            yield rule.error(
                span,
                "one cacheability for all mappings of a page",
                f"{_what(span)}, which another leaf maps uncached",
                "DDI 0487 B2.11 (mismatched memory attributes): the two see different contents",
            )


# --- M7, M8, M9: shareability, access flag, software bits ---


@invariant(
    "M7",
    "Every leaf is inner shareable (where LPA2 is off: with it the two bits are address).",
    "DDI 0487 D8.6.2; stage2_set_prot_attr",
    function="attributes",
    why="caches of different CPUs need not agree on what the guest wrote",
    form=True,
)
def shareability(rule: Judge, context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        if owned.view.geometry.lpa2:
            continue
        for span in owned.spans(lambda d: d.kind.is_leaf and d.shareable is not Shareability.INNER):
            value = span.pattern.shareability
            yield rule.error(span, "SH 3, inner shareable", f"SH {span.raw}[9:8] = {value}")


@invariant(
    "M8",
    "The access flag of a device is set: every leaf is made with it, and only pages of the allocator's are aged (a "
    "clear flag of RAM is legal at any time).",
    "stage2_set_prot_attr, kvm_age_gfn; lru_gen_look_around, damon_ptep_mkold (mm)",
    function="attributes",
    why="nothing ages a device: the entry was written by something else",
    form=True,
)
def access_flag(rule: Judge, context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        old = owned.matching(lambda d: d.kind.is_leaf and _uncached(d) and not d.af)
        if old.any():
            old = owned.columns.among(old, lambda c: ~context.ram.touch(c.output, c.size))
            for span in owned.spans(old):
                yield rule.error(span, "AF set", f"{span.raw}, AF clear")


@invariant(
    "M9",
    "The software bits [58:55] of a leaf are zero but in shadow tables (level of the guest's own mapping) and under "
    "protected mode (page states).",
    "stage2_set_prot_attr, kvm_encode_nested_level, enum pkvm_page_state",
    function="attributes",
    why="a plain VM's table has no use for them: the entry was written by something else, or for another kind of table",
    form=True,
)
def software_bits(rule: Judge, context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        if software_bits_used(context.capture.host, owned.view.mmu):
            continue
        for span in owned.spans(owned.leaf & owned.columns.having(_SOFTWARE)):
            yield rule.error(span, "software bits [58:55] zero", f"{span.raw}: {span.pattern.sw:#x}")
