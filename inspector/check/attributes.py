"""M5 to M9: the attributes of leaves, held against what the memory is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from inspector.check.backing import Placed, inside, joined, touching
from inspector.check.catalogue import invariant
from inspector.check.context import Context, error, many, spans
from inspector.check.entries import Mask
from inspector.check.ownership import Owned
from inspector.codec import Descriptor
from inspector.findings import Finding
from inspector.generations import software_bits_used
from inspector.snapshot import MmuKind

_ATTR = "stage2_set_prot_attr"
_FAULT = "user_mem_abort"


def _uncached(descriptor: Descriptor) -> bool:
    return descriptor.memory_type in ("device-nGnRE", "normal-nc")


def _cached(descriptor: Descriptor) -> bool:
    return descriptor.memory_type == "normal"


# --- M5: execution ---


@invariant(
    "M5",
    "Device and non-cacheable memory is execute-never, and a VM's own table lets both of the guest's exception levels "
    "execute a page, or neither.",
    "stage2_set_prot_attr, stage2_set_xn_attr; user_mem_abort (-ENOEXEC)",
)
def execution(context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        view, entries = owned.view, owned.entries
        device = entries.matching(lambda d: _uncached(d) and d.executable != "-")
        for span in spans(view, entries, device):
            yield error(
                "M5",
                span.where,
                "execute-never: it is device or non-cacheable memory",
                f"{span.where.raw or 0:#018x}, executable{many(span.count)}",
                "the guest's CPU may fetch from a device on its own, speculatively: a read with side effects",
                _ATTR,
            )
        if view.mmu.kind is not MmuKind.VM:
            continue  # shadow tables carry what the guest's own stage 2 says
        for span in spans(view, entries, ~device & entries.matching(lambda d: d.executable in ("PX", "UX"))):
            yield error(
                "M5",
                span.where,
                "XN[54:53] 00 or 10",
                f"{span.where.raw or 0:#018x}{many(span.count)}",
                "KVM knows only pages to execute and pages not to: one exception level has a right it was not given",
                "stage2_set_xn_attr",
            )


# --- M6: memory types ---


def _never_written(context: Context, owned: Owned) -> Mask:
    """Memory types that this kernel writes in no guest's table (kernel.md 1.3)."""
    known = {"normal", "device-nGnRE"} | ({"normal-nc"} if context.code.behaviours.normal_nc else set())
    return owned.entries.matching(lambda d: d.kind.is_leaf and d.memory_type not in known)


def _sound(placed: Placed) -> Mask:
    """The leaves that map what the VMM has there, as far as that is known."""
    pieces = placed.pieces
    everything = np.ones(len(pieces.leaf), dtype=bool)
    return placed.of_leaves(everything) & ~placed.of_leaves(pieces.elsewhere | pieces.nowhere)


@invariant(
    "M6",
    "RAM is mapped Normal write-back, anything else Device (non-cacheable where its driver allows it, write-back where "
    "the VMM's own mapping is), in the encoding that FWB asks for; and no page has two cacheabilities.",
    "DDI 0487 D8.6.5-6; stage2_set_prot_attr, user_mem_abort: pfn_is_map_memory",
)
def memory_types(context: Context) -> Iterator[Finding]:
    host = context.capture.host
    ram = joined(host.ram)
    any_cacheable = context.code.behaviours.cacheable_pfnmap and bool(host.features.get("fwb"))
    for owned in context.owned:
        view, entries, wrong = owned.view, owned.entries, _never_written(context, owned)
        for span in spans(view, entries, wrong):
            kind = entries.patterns[entries.pattern[span.first]]
            yield error(
                "M6",
                span.where,
                "MemAttr of Normal write-back or Device-nGnRE, as KVM encodes them",
                f"{span.where.raw or 0:#018x}, {kind.memory_type}{many(span.count)}",
                f"KVM never writes it with FWB {int(view.format.fwb)}",
                _ATTR,
            )
    mixed: list[tuple[Placed, Mask, Mask]] = []
    for placed in context.placed:
        view, entries = placed.owned.view, placed.owned.entries
        sound = _sound(placed) & ~_never_written(context, placed.owned)
        in_ram = inside(entries.output, entries.size, *ram)
        touches = touching(entries.output, entries.size, *ram)
        # The VMM maps carved-out memory ("no-map") by frame number: RAM to QEMU, a device to the kernel.
        ordinary = placed.of_leaves(placed.pieces.agreed & ~placed.pieces.special)
        as_device = sound & ordinary & touches & entries.matching(_uncached)
        for span in spans(view, entries, as_device):
            yield error(
                "M6",
                span.where,
                "Normal write-back: it is RAM",
                _what(placed, span.first, span.where.raw, span.count),
                "the guest's writes bypass caches that the host and its devices read and write the page through",
                _FAULT,
            )
        as_normal = sound & ~in_ram & entries.matching(_cached)
        if any_cacheable:
            as_normal = np.zeros_like(as_normal)
        for span in spans(view, entries, as_normal):
            yield error(
                "M6",
                span.where,
                "Device or non-cacheable: it is not RAM",
                _what(placed, span.first, span.where.raw, span.count),
                "speculative and gathered accesses reach a device, with whatever effect they have there",
                _FAULT,
            )
        mixed.append((placed, sound & ~as_device & entries.matching(_uncached), sound & ~as_normal))
    yield from _mixed(mixed)


def _what(placed: Placed, first: int, raw: int | None, count: int) -> str:
    entries = placed.owned.entries
    kind = entries.patterns[entries.pattern[first]].memory_type
    return f"{raw or 0:#018x}, {kind}, PA {int(entries.output[first]):#x}{many(count)}"


def _mixed(leaves: list[tuple[Placed, Mask, Mask]]) -> Iterator[Finding]:
    """Write-back leaves on memory that another leaf, of whichever VM, maps uncached."""
    ranges: list[tuple[int, int]] = []
    for placed, uncached, _ in leaves:
        entries = placed.owned.entries
        low, size = entries.output[uncached], entries.size[uncached]
        ranges += zip(low.tolist(), (low + size).tolist(), strict=True)
    if not ranges:
        return
    starts, ends = joined(ranges)
    for placed, _, sound in leaves:
        view, entries = placed.owned.view, placed.owned.entries
        both = sound & entries.matching(_cached) & touching(entries.output, entries.size, starts, ends)
        for span in spans(view, entries, both):
            yield error(
                "M6",
                span.where,
                "one cacheability for all mappings of a page",
                f"{_what(placed, span.first, span.where.raw, span.count)}, which another leaf maps uncached",
                "DDI 0487 B2.11 (mismatched memory attributes): the two see different contents",
                _FAULT,
            )


# --- M7, M8, M9: shareability, access flag, software bits ---


@invariant(
    "M7",
    "Every leaf is inner shareable (where LPA2 is off: with it the two bits are address).",
    "DDI 0487 D8.6.2; stage2_set_prot_attr",
)
def shareability(context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        view, entries = owned.view, owned.entries
        if view.geometry.lpa2:
            continue
        for span in spans(view, entries, entries.matching(lambda d: d.kind.is_leaf and d.shareability != 3)):
            yield error(
                "M7",
                span.where,
                "SH 3, inner shareable",
                f"SH {span.where.raw or 0:#018x}[9:8] = {(span.where.raw or 0) >> 8 & 3}{many(span.count)}",
                "caches of different CPUs need not agree on what the guest wrote",
                _ATTR,
            )


@invariant(
    "M8",
    "The access flag of a device is set: every leaf is made with it, and only pages of the allocator's are aged (a "
    "clear flag of RAM is legal at any time).",
    "stage2_set_prot_attr, kvm_age_gfn; lru_gen_look_around, damon_ptep_mkold (mm)",
)
def access_flag(context: Context) -> Iterator[Finding]:
    ram = joined(context.capture.host.ram)
    for owned in context.owned:
        view, entries = owned.view, owned.entries
        old = entries.matching(lambda d: d.kind.is_leaf and _uncached(d) and not d.af)
        for span in spans(view, entries, old & ~touching(entries.output, entries.size, *ram)):
            yield error(
                "M8",
                span.where,
                "AF set",
                f"{span.where.raw or 0:#018x}, AF clear{many(span.count)}",
                "nothing ages a device: the entry was written by something else",
                _ATTR,
            )


@invariant(
    "M9",
    "The software bits [58:55] of a leaf are zero but in shadow tables (level of the guest's own mapping) and under "
    "protected mode (page states).",
    "stage2_set_prot_attr, kvm_encode_nested_level, enum pkvm_page_state",
)
def software_bits(context: Context) -> Iterator[Finding]:
    for owned in context.owned:
        view, entries = owned.view, owned.entries
        if software_bits_used(context.capture.host, view.mmu):
            continue
        for span in spans(view, entries, entries.matching(lambda d: d.kind.is_leaf and d.sw != 0)):
            yield error(
                "M9",
                span.where,
                "software bits [58:55] zero",
                f"{span.where.raw or 0:#018x}: {(span.where.raw or 0) >> 55 & 0xF:#x}{many(span.count)}",
                "a plain VM's table has no use for them: the entry was written by something else, or for another "
                "kind of table",
                _ATTR,
            )
