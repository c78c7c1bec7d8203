"""The kernel's own symbol table, decoded out of an Image: every text symbol, with KALLSYMS_ALL every symbol.

Nothing in an Image says where kallsyms lies, so it is found by what it must look like, starting from the one
part with a fixed pattern, and each part found is checked against the next.  Everything follows
`scripts/kallsyms.c` (``write_src``) and `kernel/kallsyms.c` (``kallsyms_expand_symbol``,
``kallsyms_sym_address``).  Each label is aligned to 8 bytes (up to 6.12 at least) or 4 (7.3).  The two orders
of the parts:

* up to 6.3: offsets, relative_base, num_syms, names, markers, [seqs_of_names,] token_table, token_index
* since 6.4: num_syms, names, markers, token_table, token_index, offsets, [relative_base,] [seqs_of_names]

An offset is unsigned and counts from ``kallsyms_relative_base`` (4.6 up to 6.x; arm64 never sets
KALLSYMS_ABSOLUTE_PERCPU), or is signed and counts from its own place in the table (PREL32, 7.x).
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass

_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_TOKENS = 256
_ALIGNMENTS = (8, 4)
_BLOCK = 256  # symbols per marker
_MAX_SYMBOLS = 1 << 22
_LONGEST = 200  # bytes of a compressed name, as an average over one block (Rust names are long)


class NoKallsyms(Exception):
    """The Image holds no kallsyms that can be decoded; the message says what was not found."""


@dataclass(frozen=True)
class Kallsyms:
    """Symbols in table order: nm-style type letters, names, and where each lies.

    ``offsets`` are bytes from the Image's first byte when ``relative_base`` is ``None``, else bytes from the
    link-time address ``relative_base``, whose place in the Image is ``base_position`` (a relocatable kernel
    built without RELR stores 0 there and keeps the address in .rela.dyn).
    """

    kinds: str
    names: tuple[str, ...]
    offsets: tuple[int, ...]
    relative_base: int | None
    base_position: int


@dataclass(frozen=True)
class _Names:
    num_syms_at: int
    start: int
    count: int
    align: int


def decode_kallsyms(data: bytes) -> Kallsyms:
    """Find and decode kallsyms in an unpacked Image; raises `NoKallsyms`."""
    reason = "no token table"
    for table, index, align in _token_tables(data):
        for names in _name_tables(data, table, align):
            located = _offsets(data, names, index + 2 * _TOKENS)
            if located is None:
                reason = "names without offsets"
                continue
            kinds, texts = _expand(data, names, table, index)
            offsets, base, position = located
            return Kallsyms(kinds, texts, offsets, base, position)
        else:
            reason = "token table without names" if reason == "no token table" else reason
    raise NoKallsyms(reason)


def _up(value: int, align: int) -> int:
    return (value + align - 1) & -align


def _token_tables(data: bytes) -> list[tuple[int, int, int]]:
    """(token_table, token_index, alignment of labels). The digits, all used in symbol names, stay tokens of
    one character.
    """
    found = []
    at = data.find(_DIGITS)
    while at >= 0:
        end = at
        for _ in range(_TOKENS - ord("0")):
            end = data.find(b"\0", end) + 1
            if end == 0:
                break
        for align in _ALIGNMENTS:
            index = _up(end, align)
            if end and index + 2 * _TOKENS <= len(data):
                offsets = struct.unpack_from(f"<{_TOKENS}H", data, index)
                table = at - offsets[ord("0")]
                if table >= 0 and table % align == 0 and _is_token_index(data, table, offsets):
                    found.append((table, index, align))
        at = data.find(_DIGITS, at + 1)
    return found


def _is_token_index(data: bytes, table: int, offsets: tuple[int, ...]) -> bool:
    at = table
    for offset in offsets:
        if at - table != offset:
            return False
        at = data.find(b"\0", at) + 1
        if at == 0:
            return False
    return True


def _name_tables(data: bytes, table: int, align: int) -> list[_Names]:
    """Candidates for the names, by way of the markers that lie between them and the token table.

    A marker table starts with 0 and grows by 512 bytes to 50 KiB for each block of 256 symbols.  It ends at
    the token table, or at seqs_of_names (3 bytes a symbol) before it.
    """
    found: list[_Names] = []
    lowest = max(0, table - 3 * _MAX_SYMBOLS)
    at = data.rfind(b"\0\0\0\0", lowest, table)
    while at >= 0:
        for start in {at & -align, _up(at, align)}:
            names = _names_of(data, start, table, align) if start >= lowest else None
            if names is not None and names not in found:
                found.append(names)
        if found:
            return found
        at = data.rfind(b"\0\0\0\0", lowest, at + 3)
    return found


def _names_of(data: bytes, markers: int, table: int, align: int) -> _Names | None:
    markers_end = markers + 4
    if data[markers:markers_end] != b"\0\0\0\0":
        return None
    last, blocks = 0, 1
    while markers_end + 4 <= table:
        (value,) = struct.unpack_from("<I", data, markers_end)
        if not 2 * _BLOCK <= value - last <= _LONGEST * _BLOCK:
            break
        last, blocks, markers_end = value, blocks + 1, markers_end + 4
    if blocks < 2:
        return None
    # The names end at the markers; the last block holds 1 to 256 names of 2 to some 200 bytes each.
    first = _up(max(align, markers - last - _LONGEST * _BLOCK), align)
    for start in range(first, markers - last, align):
        (count,) = struct.unpack_from("<I", data, start - align)
        if 0 < count <= _MAX_SYMBOLS and abs((count + _BLOCK - 1) // _BLOCK - blocks) <= 2:
            names = _Names(start - align, start, count, align)
            if _names_end(data, names, markers) is not None:
                return names
    return None


def _names_end(data: bytes, names: _Names, markers: int) -> int | None:
    """Walk all lengths; the end of the names when each block starts where its marker says."""
    at = names.start
    limit = markers
    for index in range(names.count):
        if index % _BLOCK == 0:
            (marker,) = struct.unpack_from("<I", data, markers + index // _BLOCK * 4)
            if marker != at - names.start:
                return None
        if at + 2 > limit:
            return None
        length = data[at]
        at += 1
        if length & 0x80:  # ULEB128 of two bytes, since 6.1
            length = length & 0x7F | data[at] << 7
            at += 1
        if length == 0:
            return None
        at += length
    return at if at <= limit and limit - at < names.align else None


def _offsets(data: bytes, names: _Names, after_index: int) -> tuple[tuple[int, ...], int | None, int] | None:
    """(offsets, relative base, its position) in whichever of the three forms the table grows."""
    size = 4 * names.count
    new = _up(after_index, names.align)
    if new + size + 8 <= len(data):
        base_at = _up(new + size, names.align)
        plain = struct.unpack_from(f"<{names.count}I", data, new)
        if _grows(plain):
            return plain, struct.unpack_from("<Q", data, base_at)[0], base_at
        relative = struct.unpack_from(f"<{names.count}i", data, new)
        absolute = tuple(new + 4 * index + offset for index, offset in enumerate(relative))
        if _grows(absolute):
            return absolute, None, 0
    base_at = names.num_syms_at - 8
    old = base_at - _up(size, 8)
    if old >= 0:
        plain = struct.unpack_from(f"<{names.count}I", data, old)
        if _grows(plain):
            return plain, struct.unpack_from("<Q", data, base_at)[0], base_at
    return None


def _grows(values: tuple[int, ...]) -> bool:
    """Sorted, from about 0 to less than 1 GiB (the symbols of one image)."""
    return (
        -(1 << 21) < values[0] < 1 << 21
        and values[0] < values[-1] < 1 << 30
        and all(a <= b for a, b in itertools.pairwise(values))
    )


def _expand(data: bytes, names: _Names, table: int, index: int) -> tuple[str, tuple[str, ...]]:
    offsets = struct.unpack_from(f"<{_TOKENS}H", data, index)
    tokens = [data[table + offset : data.index(b"\0", table + offset)].decode("latin-1") for offset in offsets]
    kinds, texts = [], []
    at = names.start
    token = tokens.__getitem__
    for _ in range(names.count):
        length = data[at]
        at += 1
        if length & 0x80:
            length = length & 0x7F | data[at] << 7
            at += 1
        text = "".join(map(token, data[at : at + length]))
        kinds.append(text[:1] or "?")
        texts.append(text[1:])
        at += length
    return "".join(kinds), tuple(texts)
