"""Finding the running kernel in physical memory: its image, its KASLR slide, its page tables.

The image is found by its build-id note and banner at a 2 MiB (EFI: 64 KiB) boundary, which KASLR does not change, and
believed only when a page table that belongs to it maps its first byte to exactly where it was found.  A second copy of
the same Image (one that a loader left, or a guest's kernel) fails that test: nothing maps it, or its tables hold
intermediate addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from inspector.codec import decode_register, has_e2h, table_address
from inspector.findings import BadInput, TargetLost
from inspector.kernel.memory import StoppedMemory
from inspector.kernel.space import BadPointer, KernelSpace, stage1_geometry
from inspector.kernel.vmcoreinfo import parse
from inspector.symbols.api import Symbols
from inspector.target.api import Cpu, PhysicalMemory, UnreadableMemory

_MIN_KIMG_ALIGN = 2 << 20  # Documentation/arch/arm64/booting.rst; MIN_KIMG_ALIGN, arch/arm64/include/asm/boot.h
_EFI_KIMG_ALIGN = 64 << 10  # EFI_KIMG_ALIGN of a relocatable kernel, arch/arm64/include/asm/efi.h
_COMMON_VA_BITS = (48, 52, 47, 42, 39, 36)
_POSSIBLE_VA_BITS = range(25, 53)  # DDI 0487 D8.2: T1SZ 12 to 39 without FEAT_TTST
_VMCOREINFO_START = b"OSRELEASE="

Progress = Callable[[str], None]


@dataclass(frozen=True)
class RunningKernel:
    """What the VMCOREINFO text of a kernel in RAM says of itself (kernel/vmcore_info.c)."""

    release: str
    build_id: str | None


def _same_everywhere(symbols: Symbols) -> list[tuple[int, bytes]]:
    """Bytes of the image that neither KASLR nor boot-time patching changes, with their offset in it."""
    patterns = []
    if symbols.build_id:
        patterns.append(bytes.fromhex(symbols.build_id))
    if symbols.banner:
        patterns.append(symbols.banner.encode("utf-8", "replace"))
    found = []
    for pattern in patterns:
        va = symbols.find_bytes(pattern)
        if va is not None:
            found.append((va - symbols.link_text, pattern))
    if not found:
        raise BadInput("the kernel file has neither a build id nor a version banner: the image cannot be recognised")
    return found


def _image_candidates(memory: PhysicalMemory, symbols: Symbols, align: int) -> list[int]:
    """PAs at multiples of ``align`` where this build's image lies; code may be running in only one of them."""
    marks = _same_everywhere(symbols)
    starts: list[int] = []
    for ram in memory.ram:
        # A guest's or loader's copy may be cut off by the end of RAM, the kernel's own never is.
        last = ram.end - max(offset + len(mark) for offset, mark in marks)
        starts.extend(range(-(-ram.start // align) * align, last, align))
    for offset, mark in marks:
        got = memory.read_many([(pa + offset, len(mark)) for pa in starts])
        starts = [pa for pa, data in zip(starts, got, strict=True) if data == mark]
    return starts


def running_kernels(memory: PhysicalMemory, progress: Progress) -> list[RunningKernel]:
    """Every kernel whose VMCOREINFO lies in RAM (a guest's too), for telling the user what is really running.

    The text starts a page of its own: ``vmcoreinfo_data = get_zeroed_page()`` (kernel/crash_core.c 6.1,
    kernel/vmcore_info.c 6.9 and later).
    """
    progress("looking for the running kernel's name in memory")
    found = []
    for ram in memory.ram:
        pages = range(-(-ram.start // 4096) * 4096, ram.end - 4095, 4096)
        step = 1 << 15
        for i in range(0, len(pages), step):
            chunk = pages[i : i + step]
            heads = memory.read_many([(pa, len(_VMCOREINFO_START)) for pa in chunk])
            for pa, head in zip(chunk, heads, strict=True):
                if head == _VMCOREINFO_START:
                    info = parse(memory.read(pa, 4096))
                    found.append(RunningKernel(info["OSRELEASE"], info.get("BUILD-ID")))
    return found


def _no_image(memory: PhysicalMemory, symbols: Symbols, progress: Progress) -> Exception:
    running = running_kernels(memory, progress)
    wanted = symbols.build_id or "none"
    if not running:
        return TargetLost(
            f"the kernel of {symbols.description} (build id {wanted}) is not in the machine's memory, and no other "
            "Linux names itself there: has it booted? Give the file of the kernel that runs with --image or --vmlinux"
        )
    names = ", ".join(f"{k.release} (build id {k.build_id or 'not recorded'})" for k in dict.fromkeys(running))
    return BadInput(
        f"{symbols.description} is not the running kernel: its build id is {wanted}, in memory is {names}; "
        "give the running kernel's file with --image or --vmlinux"
    )


def _page_shift(symbols: Symbols) -> int:
    """Granule of the kernel, from the flags of its Image header (booting.rst: bits 2:1, 1 = 4K, 2 = 16K, 3 = 64K)."""
    head = symbols.text(symbols.link_text, 64)
    if head is None or head[56:60] != b"ARM\x64":
        return 12
    return {1: 12, 2: 14, 3: 16}.get((int.from_bytes(head[24:32], "little") >> 1) & 3, 12)


def _va_bits(cpus: Sequence[Cpu]) -> Iterator[int]:
    """Candidates, likeliest first: T1SZ of every TCR that may be the host's, then the sizes Linux can have."""
    seen: set[int] = set()
    for cpu in cpus:
        names = ("TCR_EL2", "TCR_EL1") if has_e2h(cpu.registers) else ("TCR_EL1",)
        for name in names:
            bits = 64 - decode_register(name, cpu.registers.get(name, 0), e2h=True)["T1SZ"]
            if bits not in seen and bits in _POSSIBLE_VA_BITS:  # TCR_EL1 may be a guest's, or never written
                seen.add(bits)
                yield bits
    yield from (bits for bits in _COMMON_VA_BITS if bits not in seen)


def _roots(symbols: Symbols, cpus: Sequence[Cpu], image_pa: int, page_shift: int) -> Iterator[int]:
    """Likely PAs of swapper_pg_dir; each is verified before it is believed.

    At EL0 with KPTI, TTBR1 is tramp_pg_dir, which lies two pages before swapper_pg_dir
    (TRAMP_SWAPPER_OFFSET, arch/arm64/kernel/vmlinux.lds.S 5.10 to 7.3).
    """
    page = 1 << page_shift
    link = symbols.address("swapper_pg_dir")
    if link is not None:
        yield link - symbols.link_text + image_pa
    for cpu in cpus:
        for name in ("TTBR1_EL2", "TTBR1_EL1"):
            ttbr = cpu.registers.get(name)
            if ttbr is not None:
                baddr = table_address(ttbr) & -page
                yield baddr
                yield baddr + 2 * page


def _maps_itself(space: KernelSpace) -> bool:
    """Does the tree at ``space.root_pa`` map this image's read-only data and first text to where they lie?"""
    try:
        probe = space.link_text + space.slide + _EFI_KIMG_ALIGN  # up to 6.6 the first 64K are freed after boot
        return space.walk(probe) == space.image_pa + _EFI_KIMG_ALIGN
    except (BadPointer, UnreadableMemory):
        return False


def _plausible(memory: StoppedMemory, symbols: Symbols, candidates: Iterable[int]) -> Iterator[tuple[int, int]]:
    """``(image PA, slide)`` of the candidates that have run: ``kimage_voffset`` (VA - PA of the image) is set."""
    offset = symbols.require("kimage_voffset") - symbols.link_text
    for image_pa in candidates:
        try:
            voffset = memory.u64(image_pa + offset)
        except UnreadableMemory:
            continue
        slide = (voffset + image_pa - symbols.link_text) & ((1 << 64) - 1)
        if voffset and slide < 1 << 52:
            yield image_pa, slide


def _believed(
    memory: StoppedMemory, symbols: Symbols, cpus: Sequence[Cpu], candidates: Iterable[int]
) -> KernelSpace | None:
    """The first candidate whose own record of its place, and whose page tables, agree with where it was found.

    Likely roots first; then every page of the image (all CPUs of an nVHE host may be in guests, whose TTBR1_EL1
    they hold then, and a kernel without KALLSYMS_ALL does not name its root).
    """
    shift = _page_shift(symbols)
    plausible = list(_plausible(memory, symbols, candidates))
    for exhaustive in (False, True):
        for image_pa, slide in plausible:
            image = range(image_pa, image_pa + symbols.image_size, 1 << shift)
            if exhaustive:
                memory.prefetch([(image_pa, symbols.image_size)])
            for root in image if exhaustive else _roots(symbols, cpus, image_pa, shift):
                if not memory.is_ram(root, 1 << shift):
                    continue
                for bits in _va_bits(cpus):
                    geometry = stage1_geometry(bits, shift)
                    space = KernelSpace(memory, root, geometry, symbols.link_text, slide, image_pa, symbols.image_size)
                    if _maps_itself(space):
                        return space
    return None


def locate(memory: StoppedMemory, symbols: Symbols, cpus: Sequence[Cpu], progress: Progress) -> KernelSpace:
    """The running kernel's address space.

    Raises `BadInput` when the kernel file is not the running kernel's (both build ids are shown), `TargetLost` when no
    kernel runs yet.
    """
    progress("looking for the kernel image in memory")
    for align in (_MIN_KIMG_ALIGN, _EFI_KIMG_ALIGN):
        candidates = _image_candidates(memory, symbols, align)
        space = _believed(memory, symbols, cpus, candidates)
        if space is not None:
            return space
        if candidates:
            raise TargetLost(
                "the kernel image is in memory, but no page table maps it: the machine has not booted far enough; "
                "let it run and try again"
            )
    raise _no_image(memory, symbols, progress)
