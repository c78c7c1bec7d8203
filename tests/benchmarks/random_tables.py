"""A capture whose tables are full of random entries: ``python -m tests.benchmarks.random_tables PAGES FILE``.

One VM with a 48-bit IPA: so many table pages, linked as a tree, and every entry that is not a link is 64 random bits.
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np

from inspector.capture.file import save
from inspector.snapshot import Capture, PageInfo, PageState
from tests.check.build import PAGE, RAM, World

FANOUT = 496
"""Links of a page above level 3: the other entries are random too."""


def random_tables(pages: int, seed: int = 1) -> Capture:
    """A capture with ``pages`` linked table pages (most of them at level 3)."""
    source = np.random.default_rng(seed)
    world = World()
    guest = world.guest(1, 48)
    words = source.integers(0, 1 << 64, (pages, 512), dtype=np.uint64)
    places = np.arange(pages, dtype=np.uint64) * np.uint64(PAGE) + np.uint64(RAM[0] + (1 << 28))
    # Levels as wide as they must be, from the root down; what is left over has no links.
    widths = [1]
    while len(widths) < 4 and sum(widths) < pages:
        left = pages - sum(widths)
        below = 3 - len(widths)
        widths.append(min(left, -(-left // (FANOUT**below)), widths[-1] * FANOUT))
    first = 0
    for width, below in itertools.pairwise(widths):
        children = np.arange(first + width, first + width + below)
        parents, slots = first + (np.arange(below) % width), np.arange(below) // width
        words[parents, slots * 512 // FANOUT % 512] = places[children] | np.uint64(3)
        first += width
    assert sum(widths) == pages
    tables = {int(pa): row.tobytes() for pa, row in zip(places, words, strict=True)}
    guest.slot(0, 1 << 47, RAM[0])
    guest.root = int(places[0])
    capture = world.capture()
    info = {pa: PageInfo(1 + int(np.count_nonzero(row)), PageState.USED) for pa, row in zip(tables, words, strict=True)}
    return replace(capture, pages={**capture.pages, **tables}, page_info={**capture.page_info, **info})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pages", type=int)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    save(random_tables(given.pages, given.seed), given.file)


if __name__ == "__main__":
    main()
