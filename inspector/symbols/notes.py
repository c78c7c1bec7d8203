"""The GNU build id and the banner in an unpacked Image."""

from __future__ import annotations

import struct

_NOTE = b"\x04\0\0\0\x14\0\0\0\x03\0\0\0GNU\0"  # namesz, descsz of a SHA-1, NT_GNU_BUILD_ID
_ID_SIZE = 20
_BANNER = b"Linux version "
# Magic and class of ELF files, and where their headers have e_shoff, e_shentsize and e_shnum.
_ELFS = (
    (b"\x7fELF\x02\x01\x01", struct.Struct("<40xQ10xHH")),
    (b"\x7fELF\x01\x01\x01", struct.Struct("<32xI10xHH")),
)
_PAGE = 4096
_LARGEST_VDSO = 1 << 20


def image_build_id(data: bytes) -> str | None:
    """The kernel's build id in lower-case hex.

    The vDSOs (ELF files, page aligned, embedded by arch/arm64/kernel/vdso-wrap.S) have build ids of their
    own; those inside such a file are passed over.  ``None`` when none or more than one is left.
    """
    found = []
    at = data.find(_NOTE)
    while at >= 0:
        if at % 4 == 0 and not _inside_elf(data, at):
            found.append(data[at + len(_NOTE) :][:_ID_SIZE].hex())
        at = data.find(_NOTE, at + 1)
    return found[0] if len(found) == 1 and len(found[0]) == 2 * _ID_SIZE else None


def _inside_elf(data: bytes, at: int) -> bool:
    """Whether an ELF file that starts on a page at or below ``at`` reaches beyond it (to its section headers' end)."""
    for start in range(at & -_PAGE, max(at - _LARGEST_VDSO, -1), -_PAGE):
        for magic, header in _ELFS:
            if data.startswith(magic, start) and start + header.size <= len(data):
                table, size, count = header.unpack_from(data, start)
                if at < start + table + size * count:
                    return True
    return False


def image_banner(data: bytes) -> str | None:
    """``linux_banner`` (init/version-timestamp.c) without its newline.

    ``linux_proc_banner``'s format ("%s version %s") does not match.  Since 5.x the EFI stub's and
    init/version.c's early copy, whose version ends in a bare "#", comes first: the longest of those that
    agree up to there is the banner.
    """
    best: bytes | None = None
    at = data.find(_BANNER)
    while at >= 0:
        line = data[at : at + 512].split(b"\0")[0].rstrip(b"\n")
        if line[len(_BANNER) : len(_BANNER) + 1].isdigit() and (best is None or len(line) > len(best)):
            best = line
        at = data.find(_BANNER, at + 1)
    return None if best is None else best.decode("utf-8", "replace")
