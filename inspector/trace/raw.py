"""The probe's records, read while they are written."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

HEAD: Final = struct.Struct("<BBHI")
MOST_WORDS: Final = 32


class RecordKind(enum.IntEnum):
    """``RECORD_…`` of probe.c."""

    PROBE = 1
    STORE = 2
    INSTRUCTION = 3
    REGISTERS = 4
    MARK = 5


class Record(NamedTuple):
    """``number`` is that of a function, with `plan.EXIT` at its return; of a store its size (`SIZES`).

    ``words`` of a function's entry: its arguments, the return addresses of its callers as far as they are told, x30,
    SP; of a store: its virtual and physical address, what was to be stored (128 bits), what a
    store on a condition found, the address of the instruction, what it had to find, SP; of registers: the values of
    `plan.REGISTERS`, SP.
    """

    kind: int
    cpu: int
    number: int
    words: tuple[int, ...]


SIZES: Final = {0: 1, 1: 2, 2: 4, 3: 8, 4: 16}
"""``enum qemu_plugin_mem_value_type`` to bytes."""


MARK: Final = 0x4B52414D
"""The number of a mark: everything that was done before is in front of it (probe.c)."""


class BadRecord(ValueError):
    """What the probe never writes."""


class Reader:
    """Takes bytes as they come, and gives the records that are there as a whole, but no marks."""

    def __init__(self) -> None:
        self._left = b""

    def take(self, data: bytes) -> Iterator[Record]:
        """Raises `BadRecord`."""
        data, at = self._left + data, 0
        while at + HEAD.size <= len(data):
            kind, cpu, words, number = HEAD.unpack_from(data, at)
            is_mark = kind == RecordKind.MARK and not words and number == MARK
            if (kind not in (1, 2, 3, 4) and not is_mark) or words > MOST_WORDS:
                raise BadRecord(f"a record of kind {kind} with {words} words")
            end = at + HEAD.size + 8 * words
            if end > len(data):
                break
            if not is_mark:
                yield Record(kind, cpu, number, struct.unpack_from(f"<{words}Q", data, at + HEAD.size))
            at = end
        self._left = data[at:]
