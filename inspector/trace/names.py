"""The kernel's functions by their addresses, kept beside a traced machine: whoever reads along needs no kernel file."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path
from typing import Final

from inspector.symbols.kernel import KernelSymbols

FUNCTIONS_FILE: Final = "functions.txt"


def listed(symbols: KernelSymbols) -> str:
    """One function a line, by link address: ``ffff800080010000 _stext``."""
    low, high = symbols.link_text, symbols.address("_einittext") or symbols.address("_etext") or 0
    lines = []
    for at, address in enumerate(symbols.table.addresses):
        if low <= address < high:
            lines.append(f"{address:x} {symbols.table[at].name}")
    return "\n".join([*lines, ""])


def names_of(folder: Path) -> Callable[[int], str | None]:
    """The function that an address lies in; nothing where the list is not there."""
    addresses: list[int] = []
    names: list[str] = []
    try:
        text = (folder / FUNCTIONS_FILE).read_text()
    except OSError:
        text = ""
    for line in text.splitlines():
        address, _, name = line.partition(" ")
        addresses.append(int(address, 16))
        names.append(name)

    def name_of(address: int) -> str | None:
        at = bisect_right(addresses, address) - 1
        return names[at] if 0 <= at < len(names) - 1 else None

    return name_of
