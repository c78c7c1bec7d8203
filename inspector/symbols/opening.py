"""`open_symbols`: the providers of symbols and types brought together, through a cache."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

from inspector.budget import DEFAULT, Budget
from inspector.findings import BadInput
from inspector.symbols import cache
from inspector.symbols.btf import BadBtf, Btf, find_btf
from inspector.symbols.elf import Elf
from inspector.symbols.image import Image, is_plain_image, open_image
from inspector.symbols.kernel import FileContent, KernelSymbols
from inspector.symbols.notes import image_banner, image_build_id
from inspector.symbols.packing import read_file
from inspector.symbols.table import Symbol, SymbolTable, is_noise

Progress = Callable[[str], None]


def open_symbols(
    *,
    vmlinux: Path | None = None,
    image: Path | None = None,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    most: int = DEFAULT,
) -> KernelSymbols:
    """Addresses and types of the kernel in ``vmlinux`` (an ELF file), ``image`` (an Image, however packed),
    or both.

    With both, the vmlinux answers and the Image only supplies the text; they must be of one build.
    ``cache_dir`` defaults to `cache.default_cache_dir`.  ``progress`` is told, in a few words, what a first
    reading is doing. What a file holds may take ``most`` bytes of memory once unpacked.
    Raises `BadInput` in one sentence for every file that cannot serve.
    """
    directory = cache.default_cache_dir() if cache_dir is None else cache_dir
    tell: Progress = (lambda _: None) if progress is None else progress
    if vmlinux is not None:
        symbols = _open_vmlinux(vmlinux, directory, tell, most)
        return symbols if image is None else _with_image(symbols, image, most)
    if image is not None:
        return _open_image(image, directory, tell, most)
    raise BadInput("no kernel symbols: give the kernel's vmlinux with --vmlinux or its Image with --image")


def _which(path: Path) -> str:
    """This very file, as it is now: another one may claim its build id and have its size (ctime is the system's)."""
    try:
        it = path.stat()
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror or error}") from error
    return "-".join(f"{number:x}" for number in (it.st_size, it.st_dev, it.st_ino, it.st_mtime_ns, it.st_ctime_ns))


def _open_image(path: Path, directory: Path, tell: Progress, most: int) -> KernelSymbols:
    packed = read_file(path, Budget(most))
    build_id = image_build_id(packed) if is_plain_image(packed) else None
    slot = directory / f"{build_id or hashlib.sha256(packed).hexdigest()}-image-{_which(path)}"
    found = _recall(slot)
    if found is not None:
        return KernelSymbols(found, _describe("Image", path, found), lambda: open_image(path, packed, most).data)
    tell(f"reading symbols and types of {path} (kept for next time)")
    image = open_image(path, packed, most)
    found = read_image(image)
    _remember(slot, found)
    return KernelSymbols(found, _describe("Image", path, found), lambda: image.data)


def _describe(kind: str, path: Path, found: FileContent) -> str:
    return f"{kind} {path} ({', '.join(found.sources)})"


def _no_search(_: str) -> None:
    return None


def _open_vmlinux(path: Path, directory: Path, tell: Progress, most: int) -> KernelSymbols:
    with Elf(path, most) as elf:
        build_id = elf.build_id()
        slot = None if build_id is None else directory / f"{build_id}-vmlinux-{_which(path)}"
        found = None if slot is None else _recall(slot)
        if found is None:
            tell(f"reading symbols and types of {path} (kept for next time)")
            found = read_vmlinux(elf)
            if slot is not None:
                _remember(slot, found)
    base = found.link_text

    def load() -> bytes:
        with Elf(path, most) as again:
            return again.flatten(base)

    def search(name: str) -> Btf | None:
        from inspector.symbols.dwarf import DwarfTypes

        with Elf(path, most) as again:
            blob = DwarfTypes(again).search(name)
        return None if blob is None else _index(path, blob)

    search_on = search if "DWARF" in found.sources else _no_search
    return KernelSymbols(found, _describe("vmlinux", path, found), load, search_on)


def _with_image(symbols: KernelSymbols, path: Path, most: int) -> KernelSymbols:
    image = open_image(path, most=most)
    build_id = image_build_id(image.data)
    if build_id is not None and symbols.build_id is not None and build_id != symbols.build_id:
        raise BadInput(
            f"{path} has build id {build_id}, but {symbols.description} has {symbols.build_id}: they are not one build"
        )
    return symbols.with_image(lambda: image.data)


def read_image(image: Image) -> FileContent:
    """Everything an Image tells; raises `BadInput` when it has no BTF or no kallsyms."""
    table, link_text, sources = _image_table(image.path, image.data, image.text_offset, image.image_size)
    blob = find_btf(image.data)
    if blob is None:
        raise BadInput(
            f"{image.path} holds no BTF (CONFIG_DEBUG_INFO_BTF), so no types: give the kernel's vmlinux with --vmlinux"
        )
    return FileContent(
        ("BTF", *sources),
        image_build_id(image.data),
        image_banner(image.data),
        link_text,
        image.image_size,
        table,
        _index(image.path, blob),
    )


def read_vmlinux(elf: Elf) -> FileContent:
    """Everything a vmlinux tells, types out of BTF when it has some; raises `BadInput` when it has none at
    all.
    """
    symbols = elf.symbols()
    sources: tuple[str, ...] = ("symtab",)
    if symbols:
        table = SymbolTable.build(symbols)
        link_text = _address(elf.path, table, "_text")
    else:
        link_text = min((each.address for each in elf.sections if each.stored), default=0)
        flat = elf.flatten(link_text)
        if not is_plain_image(flat):
            what = "stripped of its symbols and not an arm64 kernel"
            raise BadInput(f"{elf.path} is {what}: give an unstripped vmlinux")
        text_offset, image_size = struct.unpack_from("<QQ", flat, 8)
        table, link_text, sources = _image_table(elf.path, flat, text_offset, image_size)
    section = elf.section(".BTF")
    if section is not None and section.in_file:
        types, kind = _index(elf.path, bytes(elf.raw(section))), "BTF"
    elif elf.section(".debug_info") is not None or elf.section(".zdebug_info") is not None:
        from inspector.symbols.dwarf import dwarf_to_btf

        types, kind = _index(elf.path, dwarf_to_btf(elf, table)), "DWARF"
    else:
        raise BadInput(f"{elf.path} is stripped and holds no BTF, so no types: give the vmlinux built with debug info")
    header = elf.read(link_text, 64) or b""
    end = table.named("_end")
    image_size = end[0].address - link_text if end else 0
    if is_plain_image(header):
        (image_size,) = struct.unpack_from("<Q", header, 16)
    banner = table.named("linux_banner")
    text = (elf.read(banner[0].address, 64) or b"") if banner else b""
    while text and b"\0" not in text and len(text) < 1024:
        more = elf.read(banner[0].address + len(text), 1)
        text = text + more if more else text + b"\0"
    line = text.split(b"\0")[0].rstrip(b"\n").decode("utf-8", "replace") or None
    return FileContent((kind, *sources), elf.build_id(), line, link_text, image_size, table, types)


def _image_table(path: Path, data: bytes, text_offset: int, size: int) -> tuple[SymbolTable, int, tuple[str, ...]]:
    """Symbols of kallsyms and ksymtab, the link base, and the names of the sources."""
    from inspector.symbols.kallsyms import NoKallsyms, decode_kallsyms
    from inspector.symbols.ksymtab import decode_ksymtab
    from inspector.symbols.linkbase import find_link_base

    try:
        kallsyms = decode_kallsyms(data)
    except NoKallsyms as error:
        raise BadInput(
            f"{path} holds no kallsyms (CONFIG_KALLSYMS) that could be decoded ({error}): "
            "give the kernel's vmlinux with --vmlinux"
        ) from error
    base = find_link_base(data, text_offset, kallsyms)
    if base is None:
        raise BadInput(f"cannot tell where {path} is linked: give the kernel's vmlinux with --vmlinux")
    symbols = [
        Symbol(base.relative_base + offset, kind, name)
        for kind, name, offset in zip(kallsyms.kinds, kallsyms.names, kallsyms.offsets, strict=True)
        if not is_noise(name)
    ]
    known = {(symbol.name, symbol.address) for symbol in symbols}
    exported = decode_ksymtab(data, size)
    extra = {name: base.text + offset for name, offset in exported.items()} | {"_text": base.text}
    for name, address in extra.items():
        if (name, address) not in known:
            symbols.append(Symbol(address, "T" if name == "_text" else "D", name))
    sources: tuple[str, ...] = ("kallsyms", "ksymtab") if exported else ("kallsyms",)
    if base.strays:
        sources += (f"{base.strays} of {base.relocations} relocations disagree on its link address",)
    return SymbolTable.build(symbols), base.text, sources


def _address(path: Path, table: SymbolTable, name: str) -> int:
    symbols = table.named(name)
    if not symbols:
        raise BadInput(f"{path} has no symbol {name}: it is not an arm64 kernel's vmlinux")
    return symbols[0].address


def _index(path: Path, blob: bytes) -> Btf:
    try:
        return Btf(blob)
    except BadBtf as error:
        raise BadInput(f"the BTF in {path} cannot be read: {error}") from error


_META = ("sources", "build_id", "banner", "link_text", "image_size")
"""What a cached `FileContent` has in its header, in the order of its fields."""


def _recall(slot: Path) -> FileContent | None:
    entry = cache.load(slot)
    if entry is None:
        return None
    try:
        sources, *rest = (entry.meta[name] for name in _META)
        table, types = SymbolTable.from_sections(entry.sections), Btf.from_sections(entry.sections)
        return FileContent(*(tuple(sources), *rest, table, types))
    except (KeyError, TypeError, ValueError, BadBtf):
        return None


def _remember(slot: Path, found: FileContent) -> None:
    meta = {name: getattr(found, name) for name in _META}
    cache.store(slot, meta, found.table.to_sections() | found.types.to_sections())
