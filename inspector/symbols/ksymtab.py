"""Exported symbols of an Image: the only names of data in a kernel without KALLSYMS_ALL.

``struct kernel_symbol`` on arm64 is three PREL32 words, each counted from its own place: value, name,
namespace (include/linux/export.h, kernel/module/internal.h; since 5.4 with the namespace).  The entries of
one section (__ksymtab, then __ksymtab_gpl, which 7.3 has no more) are sorted by name.  They are found by
their namespace words: nearly all exports have none, so all these words point at one empty string and fall by
12 from entry to entry.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

_ENTRY = struct.Struct("<iii")
_RUN = 8  # entries; shorter runs are reached by extending longer ones
_NAME = re.compile(rb"[A-Za-z_][A-Za-z0-9_.]*\Z")
_SECTIONS = 5  # adjoining sections of up to 5.10: plain, gpl, unused, unused_gpl, gpl_future
_LONGEST_NAME = 512  # KSYM_NAME_LEN since 6.1


def decode_ksymtab(data: bytes, image_size: int) -> dict[str, int]:
    """Name to offset in the Image of every exported symbol; empty when there is no table.

    ``image_size`` bounds the values: unlike ``data`` it includes .bss.
    """
    found: dict[str, int] = {}
    seen: set[int] = set()
    for start in _runs(data):
        if start in seen:
            continue
        table = list(_table(data, image_size, start))
        seen.update(at for at, _, _ in table)
        names = [name for _, name, _ in table]
        falls = sum(a > b for a, b in pairwise(names))
        if len(names) >= _RUN and falls < _SECTIONS:
            found.update((name.decode("ascii"), value) for _, name, value in table)
    return found


def _runs(data: bytes) -> Iterator[int]:
    """Starts of runs of at least `_RUN` words, 12 bytes apart, that all point at one place."""
    words = np.frombuffer(data, "<i4", count=len(data) // 4)
    for phase in range(3):
        column = words[phase::3].astype(np.int64)
        same = np.concatenate(([False], column[1:] == column[:-1] - _ENTRY.size, [False]))
        edges = np.flatnonzero(same[1:] != same[:-1])
        for first, last in edges.reshape(-1, 2):
            if last - first >= _RUN:
                yield (phase + 3 * int(first)) * 4 - 8


def _table(data: bytes, image_size: int, start: int) -> Iterator[tuple[int, bytes, int]]:
    """(place, name, value) of the entry at ``start`` and of all valid ones adjoining it, in order."""
    before = []
    at = start - _ENTRY.size
    while (entry := _entry(data, image_size, at)) is not None:
        before.append((at, *entry))
        at -= _ENTRY.size
    yield from reversed(before)
    at = start
    while (entry := _entry(data, image_size, at)) is not None:
        yield (at, *entry)
        at += _ENTRY.size


def _entry(data: bytes, image_size: int, at: int) -> tuple[bytes, int] | None:
    if at < 0 or at + _ENTRY.size > len(data):
        return None
    to_value, to_name, to_namespace = _ENTRY.unpack_from(data, at)
    value, name_at, namespace_at = at + to_value, at + 4 + to_name, at + 8 + to_namespace
    if not (0 <= value < image_size and 0 < name_at < len(data) and 0 < namespace_at < len(data)):
        return None
    end = data.find(b"\0", name_at, name_at + _LONGEST_NAME)
    name = data[name_at:end] if end >= 0 else b""
    return (name, value) if _NAME.match(name) else None
