"""Guests of any size, planted: table pages written word by word, the VMM's too, and slots with what backs them.

``python -m tests.benchmarks.planted LEAVES FILE [--pages N]`` writes one as a capture.  Nothing here calls our own
encoder: what a stage-2 entry holds is as in `tests.check.build`, and a stage-1 one as in `tests.kernel.test_vmm`.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from inspector.backing import KNOWN, READABLE, ROW, STATES, WRITABLE, BackingRuns
from inspector.capture.file import save
from inspector.codec.bulk import Flat, Words
from inspector.snapshot import BackingState, Capture, Memslot, PageInfo, PageState
from tests.check.build import GIB, PAGE, RAM, RW, World
from tests.kernel.test_vmm import USER_RW

LINK = 0b11
MEMORY, TABLES, VMM_TABLES = 0x10_0000_0000, 0x400_0000_0000, 0x480_0000_0000
"""PAs: the guest's memory, its tables, and its VMM's."""
HVA = GIB
"""Where the VMM has the guest's memory: at the guest's own addresses, so that both trees have one shape."""


@dataclass(frozen=True)
class Extents:
    """A guest's pages in runs of contiguous frames: the ``first`` frame of each, and its ``length``."""

    first: Flat
    length: Flat

    @classmethod
    def of(cls, leaves: int, longest: int, seed: int = 20) -> Extents:
        """Of 1 to ``longest`` pages, in any order and never adjacent; ``longest`` 0: one of all pages."""
        if not longest:
            return cls(np.zeros(1, dtype=np.intp), np.array([leaves]))
        source = np.random.default_rng(seed)
        length = source.integers(1, longest + 1, leaves)
        length = length[: int(np.searchsorted(np.cumsum(length), leaves)) + 1]
        length[-1] -= length.sum() - leaves
        return cls(source.permutation(len(length)) * (longest + 1), length)

    @property
    def begin(self) -> Flat:
        """The place of each in the guest's memory, in pages."""
        found: Flat = np.cumsum(self.length) - self.length
        return found

    def words(self, attributes: int) -> Words:
        """An entry for every page."""
        frames = np.repeat(self.first - self.begin, self.length) + np.arange(int(self.length.sum()))
        found: Words = frames.astype(np.uint64) * np.uint64(PAGE) + np.uint64(MEMORY) | np.uint64(attributes)
        return found

    def backing(self) -> BackingRuns:
        rows = np.zeros(len(self.first), dtype=ROW)
        rows["hva"], rows["size"], rows["pa"] = self.begin * PAGE + HVA, self.length * PAGE, self.first * PAGE + MEMORY
        rows["state"], rows["entry_size"] = STATES.index(BackingState.PRESENT), PAGE
        rows["flags"] = READABLE | WRITABLE | KNOWN
        return BackingRuns(rows)


def tables(words: Words, at: int) -> tuple[dict[int, bytes], dict[int, int], int]:
    """Table pages from PA ``at`` on that map the addresses from 1 GiB up to ``words``; how many entries each has; and
    the entry for them in a level-0 table.
    """
    pages: dict[int, bytes] = {}
    used: dict[int, int] = {}
    for level in (3, 2, 1):
        if level == 1:
            words = np.pad(words, (1, 511 - len(words)))
        base = at + len(pages) * PAGE
        blob, places = words.astype("<u8").tobytes(), range(base, base + len(words) * 8, PAGE)
        pages |= {pa: blob[pa - base : pa - base + PAGE] for pa in places}
        used |= zip(places, np.count_nonzero(words.reshape(-1, 512), axis=1).tolist(), strict=True)
        words = np.array(places, dtype=np.uint64) | np.uint64(LINK)
    return pages, used, int(words[0])


def planted(leaves: int, longest: int = 0) -> Capture:
    """One VM of a 48-bit IPA with so many leaves of 4K from 1 GiB up, in `Extents`, in one slot.

    ``leaves`` is a multiple of 2**18, and 511 times that at most: whole gigabytes, below one level-1 table.
    """
    extents = Extents.of(leaves, longest)
    pages, used, entry = tables(extents.words(RW | LINK), TABLES)
    world = World()
    guest = world.guest(1, 48)
    world.pages[guest.root][0] = entry
    guest.slots.append(Memslot(0, 0, GIB // PAGE, leaves, HVA, 0, 0, extents.backing()))
    top = MEMORY + int((extents.first + extents.length).max()) * PAGE
    world.host_changes["ram"] = (RAM, (MEMORY, top), (TABLES, TABLES + len(pages) * PAGE))
    capture = world.capture()
    info = {pa: PageInfo(1 + count, PageState.USED) for pa, count in used.items()}
    return replace(capture, pages={**capture.pages, **pages}, page_info={**capture.page_info, **info})


def many(vms: int) -> Capture:
    """A host with so many VMs, each with a vCPU, a slot of 1 MiB, and four pages of it mapped."""
    world = World()
    for number in range(vms):
        guest = world.guest(1 + number)
        ipa, pa = GIB, MEMORY + number * (1 << 20)
        guest.slot(ipa, 1 << 20, pa)
        for page in range(4):
            guest.map(ipa + page * PAGE, pa + page * PAGE)
        guest.vcpu(0)
    world.host_changes["ram"] = (RAM, (MEMORY, MEMORY + (vms << 20)))
    return world.capture()


def vmm_tables(leaves: int, longest: int = 0) -> tuple[dict[int, bytes], int]:
    """The stage-1 tables of the VMM of `planted`, and the PA of their root."""
    pages, _, entry = tables(Extents.of(leaves, longest).words(USER_RW), VMM_TABLES)
    root = VMM_TABLES + len(pages) * PAGE
    return {**pages, root: entry.to_bytes(8, "little") + bytes(PAGE - 8)}, root


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("leaves", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("--pages", type=int, default=0, metavar="N", help="Extents of 1 to N pages. Default: one.")
    given = parser.parse_args()
    save(planted(given.leaves, given.pages), given.file)


if __name__ == "__main__":
    main()
