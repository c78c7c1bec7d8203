"""A read cache over physical memory, valid for one stop of the machine."""

from __future__ import annotations

from collections.abc import Sequence

from inspector.target.api import PhysicalMemory, UnreadableMemory, read_each

_CHUNK = 4096


class StoppedMemory:
    """Physical memory of a machine that stands still: every 4 KiB is fetched once.

    A kernel structure is a few cache lines and its neighbours are usually wanted next, while a round trip through
    gdb costs as much for 8 bytes as for 4096.
    """

    def __init__(self, memory: PhysicalMemory) -> None:
        self._memory = memory
        self.name, self.why_not_faster, self.ram = memory.name, memory.why_not_faster, memory.ram
        self._chunks: dict[int, bytes | None] = {}

    def is_ram(self, pa: int, size: int = 1) -> bool:
        """True when all of ``[pa, pa + size)`` bytes lies in one RAM range."""
        return any(r.start <= pa and pa + size <= r.end for r in self._memory.ram)

    def prefetch(self, requests: Sequence[tuple[int, int]]) -> None:
        """Bring every chunk that ``requests`` (pa, bytes) touch into the cache in one go."""
        wanted = {
            chunk
            for pa, size in requests
            for chunk in range(pa & -_CHUNK, pa + size, _CHUNK)
            if chunk not in self._chunks
        }
        readable = sorted(c for c in wanted if self.is_ram(c, _CHUNK))
        self._chunks.update(dict.fromkeys(wanted))
        got = self._memory.read_many([(c, _CHUNK) for c in readable])
        self._chunks.update(zip(readable, got, strict=True))

    def read(self, pa: int, size: int) -> bytes:
        """``size`` bytes at ``pa``; raises `UnreadableMemory`."""
        self.prefetch([(pa, size)])
        parts = []
        for chunk in range(pa & -_CHUNK, pa + size, _CHUNK):
            data = self._chunks[chunk]
            if data is None:
                if not self.is_ram(chunk, _CHUNK):
                    raise UnreadableMemory(pa, size)
                data = self._memory.read(chunk, _CHUNK)  # which says why not
            parts.append(data[max(pa - chunk, 0) : min(pa + size - chunk, _CHUNK)])
        return b"".join(parts)

    def read_many(self, requests: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """Many reads ``(pa, size)``; ``None`` where unreadable."""
        self.prefetch(requests)
        return read_each(self.read, requests)

    def u64(self, pa: int) -> int:
        return int.from_bytes(self.read(pa, 8), "little")
