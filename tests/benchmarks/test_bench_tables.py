"""Bytes to merged ranges, a million leaves at a time, against copying the same bytes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from inspector.codec import Format, Geometry, Regime
from inspector.tables import ReadMany, merged_ranges, reader_of, walk_tree
from tests.benchmarks.timing import beside_memcpy

LEAVES = 1 << 20
PAGE = 4096
ROOT, LEVEL2, LEVEL3 = 0x4800_0000, 0x4900_0000, 0x5000_0000
ATTRIBUTES = 0x0040_0000_0000_07DB
GEOMETRY = Geometry.for_ipa(40)
FWB = Format(Regime.STAGE2, fwb=True)
LIMIT = 20.0
ROUNDS = 60

Words = np.ndarray[tuple[int, ...], np.dtype[np.uint64]]


def _contiguous() -> Words:
    """Frames of a guest whose memory is one extent."""
    return np.arange(LEAVES, dtype=np.uint64) + np.uint64(1 << 20)


def _scattered() -> Words:
    """Frames of a guest whose memory came in extents of 1 to 64 pages, in any order and never adjacent."""
    source = np.random.default_rng(20)
    lengths = source.integers(1, 65, LEAVES)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), LEAVES)) + 1]
    starts = source.permutation(len(lengths)).astype(np.uint64) * np.uint64(65) + np.uint64(1 << 20)
    first = np.repeat(np.cumsum(lengths) - lengths, lengths).astype(np.uint64)
    frames: Words = np.repeat(starts, lengths) + np.arange(int(lengths.sum()), dtype=np.uint64) - first
    return frames[:LEAVES]


def _pages(frames: Words) -> dict[int, bytes]:
    """The table pages that map IPA 0 upward to these frames, 4K by 4K, by PA."""

    def split(base: int, words: Words) -> dict[int, bytes]:
        raw = words.astype("<u8").tobytes()
        raw += bytes(-len(raw) % PAGE)
        return {base + at: raw[at : at + PAGE] for at in range(0, len(raw), PAGE)}

    def pointers(base: int, pages: dict[int, bytes]) -> Words:
        return np.arange(len(pages), dtype=np.uint64) * np.uint64(PAGE) + np.uint64(base | 3)

    level3 = split(LEVEL3, frames * np.uint64(PAGE) | np.uint64(ATTRIBUTES))
    level2 = split(LEVEL2, pointers(LEVEL3, level3))
    roots = split(ROOT, pointers(LEVEL2, level2)) | {ROOT + PAGE: bytes(PAGE)}
    return roots | level2 | level3


def _ranges_of(read_many: ReadMany) -> int:
    return len(merged_ranges(walk_tree(read_many, ROOT, GEOMETRY, FWB)))


@pytest.mark.parametrize("frames", [_contiguous, _scattered], ids=["mergeable", "scattered"])
def test_bytes_to_merged_ranges_within_twenty_copies(
    frames: Callable[[], Words], capsys: pytest.CaptureFixture[str]
) -> None:
    """Walk (every table found through its parent, every check made) and merge, against one memcpy of the tables."""
    numbers = frames()
    expected = 1 + int(np.count_nonzero(np.diff(numbers.view(np.int64)) != 1))
    pages = _pages(numbers)
    read_many = reader_of(pages)
    assert _ranges_of(read_many) == expected

    blob = b"".join(pages.values())
    best = beside_memcpy(lambda: _ranges_of(read_many), blob, ROUNDS)
    with capsys.disabled():
        print(
            f"\n  {LEAVES} leaves to {expected} ranges: {best.working * 1e3:.2f} ms; memcpy of the "
            f"{len(blob) >> 10} KiB: {best.copying * 1e3:.2f} ms; ratio {best.ratio:.1f} (limit {LIMIT:.0f})"
        )
    assert best.ratio <= LIMIT
