"""Where the array of ``struct page`` lies, from whatever the running kernel says of it.

``vmemmap`` is the biased base: ``struct page`` of frame ``pfn`` is at ``vmemmap + pfn * sizeof(struct page)``
(arch/arm64/include/asm/pgtable.h).  Its place follows from the kernel's configuration and has moved between releases,
so the kernel's own pointers and constants are asked, each by itself; those that answer must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from inspector.kernel.objects import HostKernel
from inspector.kernel.space import BadPointer
from inspector.kernel.tasks import processes
from inspector.kernel.vmcoreinfo import vmcoreinfo
from inspector.symbols.api import MissingSymbol

_WORD = 1 << 64
_SECTION_HAS_MEM_MAP = 1 << 1
_SECTION_FLAGS = 0xFFF  # below SECTION_MAP_MASK lie 5 to 7 flags (include/linux/mmzone.h); vmemmap is page aligned
_FEW = 16  # areas, and pages of each, that are looked at


class UnknownVmemmap(Exception):
    """Nothing tells where ``struct page`` lies, or what does disagrees; the message says which."""


def _of_area(kernel: HostKernel, address: int) -> set[int]:
    """What the ``vm_struct`` at ``address`` tells: it names the page behind each address that it maps."""
    area = kernel.at("vm_struct", address)
    space, size, shift = kernel.space, kernel.sizeof("page"), kernel.space.geometry.granule_shift
    pages, start = area.u("pages"), area.u("addr")
    if not pages:
        return set()
    return {
        space.pointer(pages + 8 * i) - (space.pa(start + (i << shift)) >> shift) * size
        for i in range(min(area.u("nr_pages"), _FEW))
    }


def task_stack(kernel: HostKernel) -> set[int]:
    """The stack of the first task that has one made of pages (CONFIG_VMAP_STACK)."""
    for task in processes(kernel):
        area = task.u("stack_vm_area") if task.has("stack_vm_area") else 0
        if area:
            return _of_area(kernel, area)
    return set()


def memory_sections(kernel: HostKernel) -> set[int]:
    """``mem_section`` (exported): each ``section_mem_map`` is ``vmemmap`` with flags below.

    mm/sparse.c: ``sparse_encode_mem_map``.  One page of the array of roots covers the first 16 TiB or more.
    """
    variable = kernel.symbol("mem_section")
    roots = kernel.space.pointer(variable) if variable is not None else 0
    if not roots:
        return set()
    granule, size = kernel.space.geometry.granule, kernel.sizeof("mem_section")
    at = kernel.member("mem_section", "section_mem_map").offset
    found: set[int] = set()
    for root in islice(filter(None, kernel.space.pointers(roots, 512)), _FEW):
        data = kernel.space.read(root, granule // size * size)
        maps = (int.from_bytes(data[i + at : i + at + 8], "little") for i in range(0, len(data), size))
        found |= {value & ~_SECTION_FLAGS for value in maps if value & _SECTION_HAS_MEM_MAP}
    return found


def _vmap_lists(kernel: HostKernel) -> Iterator[int]:
    """Heads of the lists of ``struct vmap_area``: ``vmap_area_list`` up to 6.8, one a node since (mm/vmalloc.c)."""
    head = kernel.symbol("vmap_area_list")
    if head is not None:
        yield head
    nodes, count = kernel.symbol("vmap_nodes"), kernel.symbol("nr_vmap_nodes")
    if nodes is not None and count is not None:
        first, size = kernel.space.pointer(nodes), kernel.sizeof("vmap_node")
        for number in range(min(kernel.space.u32(count), 1024)):
            yield first + number * size + kernel.member("vmap_node", "busy.head").offset


def vmap_areas(kernel: HostKernel) -> set[int]:
    """A few of the areas that ``vmalloc`` made."""
    found: set[int] = set()
    vm = kernel.member("vmap_area", "vm").offset
    areas = (area for head in _vmap_lists(kernel) for area in kernel.list_of(head, "vmap_area", "list"))
    told = 0
    for area in areas:
        address = kernel.space.pointer(area + vm)
        try:
            bases = _of_area(kernel, address) if address else set()
        except BadPointer:  # a vm_map_ram area has no vm_struct; one that is being made has pages not mapped yet
            continue
        found |= bases
        told += bool(bases)
        if told == _FEW:
            break
    return found


def vmcoreinfo_constants(kernel: HostKernel) -> set[int]:
    """``VMEMMAP_START`` and ``PHYS_OFFSET`` of VMCOREINFO (6.1 and later; arch/arm64/kernel/vmcore_info.c)."""
    info = vmcoreinfo(kernel)
    try:
        start, offset = int(info["NUMBER(VMEMMAP_START)"], 16), int(info["NUMBER(PHYS_OFFSET)"], 16)
    except (KeyError, ValueError):
        return set()
    if offset >> 63:  # memstart_addr is signed: a 52-bit kernel on a 48-bit CPU biases it (arch/arm64/mm/init.c)
        offset -= _WORD
    return {(start - (offset >> kernel.space.geometry.granule_shift) * kernel.sizeof("page")) % _WORD}


METHODS: Mapping[str, Callable[[HostKernel], set[int]]] = {
    "a task's stack": task_stack,
    "mem_section": memory_sections,
    "the vmalloc areas": vmap_areas,
    "VMCOREINFO": vmcoreinfo_constants,
}
"""Each gives the bases that it was told; none where the kernel does not have, or does not name, what it reads."""


def find_vmemmap(kernel: HostKernel, methods: Mapping[str, Callable[[HostKernel], set[int]]] = METHODS) -> int:
    """``vmemmap``, on which all methods that answer agree; raises `UnknownVmemmap`."""
    found: dict[str, set[int]] = {}
    failed: list[str] = []
    for name, method in methods.items():
        try:
            bases = method(kernel)
        except (BadPointer, MissingSymbol) as error:
            failed.append(f"{name}: {error}")
            continue
        if bases:
            found[name] = bases
    every = set().union(*found.values())
    if len(every) == 1:
        return every.pop()
    if every:
        said = "; ".join(f"{name}: {', '.join(map(hex, sorted(bases)))}" for name, bases in found.items())
        raise UnknownVmemmap(f"the kernel's pointers disagree on where struct page lies ({said})")
    why = f" ({'; '.join(failed)})" if failed else ""
    raise UnknownVmemmap(f"none of {', '.join(methods)} tells where struct page lies{why}")
