"""Trees put together by hand: pages by PA, entries written where the test wants them."""

from __future__ import annotations

from collections.abc import Sequence

from inspector.codec import Format, Geometry, Kind, Regime, encode
from inspector.tables import ReadMany, reader_of

FWB = Format(Regime.STAGE2, fwb=True)
ROOT = 0x4800_0000
NORMAL = {"memattr": 6, "s2ap": 3, "sh": 3, "af": 1}


class NotRam(Exception):
    """What a physical memory raises where there is none."""

    reason = "not RAM"


class Builder:
    """A tree under construction; new tables go to ascending pages after the root."""

    def __init__(self, geometry: Geometry, fmt: Format = FWB, root: int = ROOT) -> None:
        self.geometry = geometry
        self.format = fmt
        self.root = root
        self.pages: dict[int, bytearray] = {}
        for n in range(geometry.root_pages):
            self.pages[root + n * geometry.granule] = bytearray(geometry.granule)
        self.free = root + 0x100 * geometry.granule
        self.reads: list[int] = []
        """How many requests each ``read_many`` brought."""

    def new_table(self) -> int:
        """A zeroed table page."""
        pa, self.free = self.free, self.free + self.geometry.granule
        self.pages[pa] = bytearray(self.geometry.granule)
        return pa

    def get(self, pa: int) -> int:
        """The entry at ``pa``."""
        size = self.geometry.granule
        return int.from_bytes(self.pages[pa & -size][pa % size : pa % size + 8], "little")

    def put(self, pa: int, raw: int) -> None:
        """Write an entry at ``pa``."""
        size = self.geometry.granule
        self.pages[pa & -size][pa % size : pa % size + 8] = raw.to_bytes(8, "little")

    def entry(self, ia: int, level: int) -> int:
        """The PA of the entry for ``ia`` at ``level``, making tables on the way."""
        geometry = self.geometry
        table = self.root + geometry.root_index(ia) * geometry.granule
        for at in geometry.levels:
            pa = table + 8 * geometry.index(at, ia)
            if at == level:
                return pa
            raw = self.get(pa)
            if not raw & 1:
                raw = encode(Kind.TABLE, at, geometry, self.format, self.new_table())
                self.put(pa, raw)
            table = raw & 0xFFFF_FFFF_F000
        raise AssertionError(f"no level {level}")

    def map(self, ia: int, pa: int, level: int = 3, **attributes: int) -> int:
        """Map one leaf; returns the entry's value."""
        kind = Kind.PAGE if level == 3 else Kind.BLOCK
        fields = {**NORMAL, **attributes}
        if self.geometry.lpa2:
            fields.pop("sh")
        raw = encode(kind, level, self.geometry, self.format, pa, **fields)
        self.put(self.entry(ia, level), raw)
        return raw

    @property
    def read_many(self) -> ReadMany:
        """Reads of this tree's pages; counts the requests in ``reads``."""

        def read_many(requests: Sequence[tuple[int, int]]) -> Sequence[bytes | None]:
            self.reads.append(len(requests))
            return self._read(requests)

        return read_many

    def _read(self, requests: Sequence[tuple[int, int]]) -> Sequence[bytes | None]:
        wanted = {pa & -self.geometry.granule for pa, _ in requests} & self.pages.keys()
        return reader_of({pa: bytes(self.pages[pa]) for pa in wanted})(requests)

    def read(self, pa: int, size: int) -> bytes:
        """One read; raises `NotRam` outside the tree's pages."""
        found = self._read([(pa, size)])[0]
        if found is None:
            raise NotRam(f"no memory at {pa:#x}")
        return found
