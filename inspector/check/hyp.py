"""H1 to H5: EL2's own stage 1, of a host whose kernel does not run there (nVHE, hVHE, protected)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from inspector.check.catalogue import Judge, invariant
from inspector.check.context import Context
from inspector.check.own import Own, linear, translating, writable_is_never_executed
from inspector.check.places import where_entry, where_page, where_problem, where_view
from inspector.codec import Descriptor, Execute, Kind, decode, decode_register, has_e2h, table_address
from inspector.codec.bulk import Flags, Words
from inspector.findings import Finding
from inspector.generations import Generation
from inspector.model import HypStage1, Machine, Prot
from inspector.snapshot import Area, OwnKind, PageState
from inspector.tables import ProblemKind

_REGISTER = {OwnKind.HYP: "TTBR0_EL2", OwnKind.HOST: "VTTBR_EL2"}
_RECORD = {OwnKind.HYP: ("kvm_mmu_get_httbr", "__pkvm_init_switch_pgd"), OwnKind.HOST: ("__load_host_stage2",) * 2}


# --- H1: roots ---


@invariant(
    "H1",
    "TTBR0_EL2 of every CPU names one and the same table, with the same VA size and granule in TCR_EL2: the one that "
    "the kernel recorded.  Under pKVM so does VTTBR_EL2, VMID 0, while the host runs.",
    "arch/arm64/kvm/arm.c: cpu_prepare_hyp_mode; nvhe/hyp-init.S; nvhe/mem_protect.c: __pkvm_prot_finalize",
    why="a CPU translates by a table that nobody keeps up to date",
)
def own_roots(rule: Judge, context: Context) -> Iterator[Finding]:
    protected, on = context.protected, translating(context.capture)
    for own in context.own:
        table, kind = own.view.table, own.view.table.kind
        function, register = _RECORD[kind][protected], _REGISTER[kind]
        where = where_view(own.view, table_pa=table.root)
        if table.recorded is not None and table.recorded != table.root:
            said = f"the kernel's record says {table.recorded:#x}, {register} says {table.root:#x}"
            yield rule.error(where, "one root", said, function=function)
        shapes = set()
        for cpu in context.capture.host.cpus:
            value = cpu.registers.get(register, 0)
            if kind is OwnKind.HOST:
                if not cpu.hosts_own_stage2:
                    continue
            elif not value or cpu not in on:
                continue
            elif "TCR_EL2" in cpu.registers:
                fields = decode_register("tcr_el2", cpu.registers["TCR_EL2"], has_e2h(cpu.registers))
                shapes.add((fields["T0SZ"], fields["TG0"]))
            if table_address(value) != table.root:
                said = f"{register} of CPU {cpu.index} is {value:#x}"
                yield rule.error(where, f"{table.root:#x}, as of the other CPUs", said, function=function)
        if len(shapes) > 1:
            said = "TCR_EL2.T0SZ, TG0: " + ", ".join(f"{t0sz}, {tg0}" for t0sz, tg0 in sorted(shapes))
            yield rule.error(where, "one shape on all CPUs", said, function=function)


# --- H2: W^X ---


def _meant_executable(descriptor: Descriptor, one_bit: bool) -> bool:
    """Executable at EL2; ``one_bit``: as far as a kernel knows that writes XN in bit 54 alone with E2H too."""
    if one_bit:
        return descriptor.kind.is_leaf and not descriptor.field("uxn")
    return descriptor.executable in (Execute.ALL, Execute.PRIVILEGED)


def _one_bit(own: Own) -> bool:
    """hVHE of up to 6.18: bit 54, which is UXN with E2H, is written for XN, and PXN never."""
    return own.columns.format.hvhe and not own.code.behaviours.hyp_two_bit_xn


@invariant(
    "H2",
    "Nothing that EL2 may write, and no device, is executable at EL2 (with HCR_EL2.E2H by PXN, bit 53, else by XN).",
    "hyp_set_prot_attr; DDI 0487 D8.4; commit 8d8e882c2b4b (PXN with hVHE)",
    function="hyp_set_prot_attr",
    why="whoever can write to the hypervisor's data runs code at EL2",
)
def write_xor_execute(rule: Judge, context: Context) -> Iterator[Finding]:
    for own in context.hyp:
        one_bit = _one_bit(own)

        def wrong(d: Descriptor, one_bit: bool = one_bit) -> bool:
            uncached = d.memory_type.startswith("device")
            return d.kind.is_leaf and (d.writable or uncached) and _meant_executable(d, one_bit)

        for span in own.spans(own.where(wrong)):
            found = own.descriptor(span)
            what = "a device" if found.memory_type.startswith("device") else "writable"
            yield rule.error(span, "writable or executable, not both", f"{span.raw}, {what} and executable")
        if one_bit and own.leaf.any():
            bare = own.leaf & own.where(lambda d: bool(d.field("uxn")) and not d.field("pxn"))
            writable = bare & own.where(lambda d: d.writable)
            if not bare.any():
                continue
            where = where_view(own.view, table_pa=own.view.root_pa)
            said = f"{int(bare.sum())} leaves with UXN alone, {int(writable.sum())} of them writable"
            if writable.any() and not writable_is_never_executed(context.capture):
                why = "SCTLR_EL2.WXN is clear, so that EL2 can execute what it can write"
                yield rule.error(where, "PXN, or SCTLR_EL2.WXN", said, why)
                continue
            why = (
                "with HCR_EL2.E2H bit 54 is UXN, and this release knows no PXN (commit 8d8e882c2b4b): EL2 may execute "
                "its read-only data; SCTLR_EL2.WXN keeps it from what it may write"
            )
            yield rule.note(where, "PXN (bit 53) where nothing is to be executed", said, why)


# --- H3: encodings ---


def _legal(own: Own) -> set[int]:
    """The attributes that ``hyp_set_prot_attr`` of this kernel makes, by the model of it."""
    behaviours, geometry, fmt = own.code.behaviours, own.columns.geometry, own.columns.format
    states = (0, 1 << 55, 1 << 56) if fmt.protected and behaviours.software_bits else (0,)
    found = set()
    for bti in (False, True):
        pgt = HypStage1(_able(behaviours, geometry.lpa2), Machine(hvhe=fmt.hvhe, bti=bti), geometry)
        for prot in (Prot.RW, Prot.R | Prot.X, Prot.R, Prot.RW | Prot.DEVICE):
            found |= {pgt.attr_of(int(prot) | state) for state in states}
    return found


def _able(behaviours: Generation, lpa2: bool) -> Generation:
    """The generation; raises nothing where a table is of a shape that it cannot have made (H1 and H4 speak of it)."""
    return replace(behaviours, lpa2=behaviours.lpa2 or lpa2)


def _attributes(descriptor: Descriptor) -> int:
    """Everything but the output address and the two type bits."""
    return descriptor.raw & ~descriptor.layout.by_name["output_address"].mask & ~3


_FREE = 0b11 << 53 | 0b11 << 6
"""XN or UXN, PXN, and AP: the permissions, whose combination H2 judges."""


@invariant(
    "H3",
    "Entries are what the kernel makes: a leaf has the attributes of PAGE_HYP, PAGE_HYP_EXEC, PAGE_HYP_RO or "
    "PAGE_HYP_DEVICE, a table entry its address alone, an invalid one is 0 (pKVM: or an unused slot of the fixmap).",
    "hyp_set_prot_attr, held against the model; hyp_map_walker, hyp_unmap_walker; nvhe/mm.c: fixmap_clear_slot",
    function="hyp_set_prot_attr",
    why="KVM never makes it: the entry was written by something else, or by a KVM that does more",
)
def hyp_entries(rule: Judge, context: Context) -> Iterator[Finding]:
    for own in context.hyp:
        legal, one_bit = _legal(own), _one_bit(own)

        def odd(d: Descriptor, legal: set[int] = legal, one_bit: bool = one_bit) -> bool:
            if not d.kind.is_leaf or _attributes(d) in legal:
                return False
            both = d.writable and _meant_executable(d, one_bit)  # H2's
            return not both or _attributes(d) & ~_FREE not in {one & ~_FREE for one in legal}

        for span in own.spans(own.where(odd)):
            found = own.descriptor(span)
            nearest = min(legal, key=lambda one: (one ^ _attributes(found)).bit_count())
            bits = nearest ^ _attributes(found)
            said = f"{span.raw}: other in bits {', '.join(str(n) for n in range(64) if bits >> n & 1)}"
            yield rule.error(span, f"attributes {nearest:#018x} of such a page", said)
        for span in own.spans(own.where(lambda d: d.kind is Kind.TABLE and bool(_attributes(d)))):
            yield rule.error(span, "an address and the two type bits", span.raw, function="hyp_map_walker")
        for span in own.spans(own.where(lambda d: d.kind is Kind.RESERVED)):
            said = f"{span.raw} at level {span.where.level}"
            yield rule.error(span, "a table, a block or a page", said, "the encoding is reserved: EL2 takes a fault")
        for span in own.spans(own.where(lambda d: not d.valid) & ~_fixmap(own, legal)):
            yield rule.error(span, "zero", span.raw, function="hyp_unmap_walker")


def _fixmap(own: Own, legal: set[int]) -> Flags:
    """Invalid entries that pKVM keeps for mapping a page for a moment: a leaf of PAGE_HYP without bit 0."""
    fmt = own.columns.format
    if not fmt.protected:
        return np.zeros(len(own.columns.raw), dtype=bool)
    geometry = own.columns.geometry

    def slot(d: Descriptor) -> bool:
        then = decode(d.raw | 1, d.level, geometry, fmt)
        return not d.valid and then.kind.is_leaf and then.writable and _attributes(then) in legal

    return own.where(slot)


# --- H4: the tree ---


@invariant(
    "H4",
    "Every table of EL2's stage 1 is a page of RAM with one parent, in use by nobody else; where the kernel itself "
    "keeps it (nVHE, hVHE) its reference count is one more than its valid entries (6.1+).",
    "DDI 0487 D8.3.1; kvm_pgtable walkers; kvm_hyp_mm_ops, hyp_map_walker (get_page)",
    function="hyp_map_walker",
)
def hyp_tree(rule: Judge, context: Context) -> Iterator[Finding]:
    others = {pointer.child: pointer for pointer in context.pointers}
    for own in context.hyp:
        view, columns, capture = own.view, own.columns, context.capture
        for problem in view.tree.problems:
            if problem.kind not in (ProblemKind.RESERVED, ProblemKind.MISALIGNED, ProblemKind.LIMIT):
                why = "EL2 takes a fault, or walks what is not a table"
                yield rule.error(where_problem(view, problem), "a table that EL2 can walk", problem.detail, why)
        seen: dict[int, int] = {view.root_pa: -1}
        for at in np.flatnonzero(own.table).tolist():
            child = int(columns.child[at])
            twice = child in seen
            seen.setdefault(child, at)
            if not context.ram.has(child, child + view.geometry.granule):
                actual, why = f"{child:#x} is not RAM", "EL2 reads something that is not a table"
            elif child in others:
                actual = f"{child:#x} is also {others[child].text()}"
                why = "what a guest's faults write there maps memory at EL2"
            elif twice:
                actual = f"{child:#x} has two parents"
                why = "an edit through one parent changes the other"
            else:
                continue
            yield rule.error(where_entry(view, columns, at), "a table of its own", actual, why)
        if context.protected:
            continue  # pages of the hypervisor's own pool: struct page says nothing of them
        counted = own.code.behaviours.hyp_unmap
        expected = 1 + columns.per_page(columns.valid) if counted else np.ones(len(columns.page_pa), dtype=np.intp)
        for row, (pa, most) in enumerate(zip(columns.page_pa.tolist(), expected.tolist(), strict=True)):
            info = capture.page_info.get(pa)
            if info is None:
                continue
            where = where_page(view, columns, row)
            if info.state is not PageState.USED:
                said = f"the page is {info.state} (reference count {info.refcount})"
                why = "the page may be given to somebody else while EL2 walks it"
                yield rule.error(where, "an allocated page", said, why)
            elif info.refcount != most:
                said, why = f"page_count {info.refcount}", "an unmap frees the table too early, or never"
                one = abs(info.refcount - most) == 1
                excuse = "a map may be in progress, or somebody looks at the page: look again" if one else None
                yield rule.error(where, f"page_count {most}", said, why, excuse=excuse)


# --- H5: what is mapped where ---


def _offsets(own: Own) -> Words:
    """PA minus VA of every leaf, in 64 bits."""
    found: Words = own.columns.output - own.columns.ia
    return found


def _touching(own: Own, area: Area) -> Flags:
    columns = own.columns
    found: Flags = own.leaf & (columns.output < np.uint64(area.end))
    found &= columns.output + columns.size > np.uint64(area.start)
    return found


@invariant(
    "H5",
    "The half of EL2's addresses that has the kernel's memory has all of it at one offset; the hypervisor's text is "
    "there, executable, its data and read-only data with just their permissions; nothing else is executable.",
    "arch/arm64/kvm/arm.c: init_hyp_mode; nvhe/setup.c: recreate_hyp_mappings; va_layout.c: kvm_compute_layout",
    function="create_hyp_mappings",
    why="EL2 runs or reads something else than its own text and data",
)
def hyp_layout(rule: Judge, context: Context) -> Iterator[Finding]:
    for own in context.hyp:
        memory, one_bit = linear(own), _one_bit(own)
        executable = own.where(lambda d, one_bit=one_bit: d.kind.is_leaf and _meant_executable(d, one_bit))  # type: ignore[misc]
        texts = [area for area in own.view.table.areas if area.permissions == "R-X"]
        if texts:
            inside = np.zeros_like(executable)
            for area in texts:
                end = own.columns.output + own.columns.size
                inside |= (own.columns.output >= np.uint64(area.start)) & (end <= np.uint64(area.end))
            for span in own.spans(executable & ~inside & ~own.where(lambda d: d.writable)):
                said = f"{span.raw}, executable, maps PA {span.output:#x}"
                yield rule.error(span, "the hypervisor's text, its idmap or the spectre vectors", said)
        for area in own.view.table.areas:
            if not area.permissions.startswith("RW"):
                for span in own.spans(_touching(own, area) & own.where(lambda d: d.writable) & ~executable):
                    yield rule.error(span, f"{area.name} read-only", f"{span.raw}, writable")
        if memory is None or not memory.any():
            continue
        offsets = _offsets(own)
        offset = own.view.table.offset
        if offset is None:
            values, counts = np.unique(offsets[memory], return_counts=True)
            offset = int(values[counts.argmax()])
        for span in own.spans(memory & (offsets != np.uint64(offset))):
            expected = (span.where.ipa or 0) + offset & (1 << 64) - 1
            yield rule.error(span, f"PA {expected:#x}, by hyp_physvirt_offset", f"PA {span.output:#x}")
        yield from _complete(rule, own, memory & (offsets == np.uint64(offset)), offset, executable)


def _complete(rule: Judge, own: Own, memory: Flags, offset: int, executable: Flags) -> Iterator[Finding]:
    """Every page of the hypervisor's sections is mapped, as it is to be."""
    columns, granule = own.columns, own.columns.geometry.granule
    for area in own.view.table.areas:
        if area.name in ("hyp idmap text", "spectre vectors"):
            continue
        at = np.flatnonzero(_touching(own, area) & memory)
        mapped = {
            pa
            for low, size in zip(columns.output[at].tolist(), columns.size[at].tolist(), strict=True)
            for pa in range(max(low, area.start), min(low + size, area.end), granule)
        }
        missing = [pa for pa in range(area.start, area.end, granule) if pa not in mapped]
        if missing:
            va = missing[0] - offset & (1 << 64) - 1
            many = f" ({len(missing)} pages)" if len(missing) > 1 else ""
            where = where_view(own.view, ipa=va, size=granule)
            said = f"PA {missing[0]:#x} is not mapped{many}"
            yield rule.error(where, f"{area.name}, {area.permissions}", said, "EL2 faults when it comes there")
        if area.permissions == "RW-":
            wrong = _touching(own, area) & memory & ~own.where(lambda d: d.writable)
        elif area.permissions == "R-X":
            wrong = _touching(own, area) & memory & ~executable
        else:
            continue
        for span in own.spans(wrong):
            why = "EL2 faults when it comes there"
            yield rule.error(span, f"{area.name}, {area.permissions}", span.raw, why)
