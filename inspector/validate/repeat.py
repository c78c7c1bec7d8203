"""Deterministic machines: that a run can be repeated, and where another kernel's goes another way, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from inspector.crosscheck.verdict import Part
from inspector.findings import ExitCode
from inspector.trace.file import Trace
from inspector.validate.aligned import Alignment, Operation, align, operations
from inspector.validate.configurations import Configuration

_MOST: Final = 6
"""Operations of a kind that are shown."""


def deterministic(configuration: Configuration, lines: Sequence[str]) -> Configuration:
    """The same on one CPU, with all there is to do on the kernel's command line: what is sent comes when it comes."""
    scenario = ",".join(["default", *(line.removeprefix("run ") for line in lines)])
    return replace(configuration, smp=1, deterministic=True, scenario=scenario)


def in_order(name: str, kernel: Path, baselines: Sequence[Path]) -> list[Part]:
    """Parts on traces: the baseline's two runs, which must be the same, and the kernel's against the first."""
    first, again = (_read(path) for path in baselines[:2])
    repeated = align(first, again)
    parts = [_part(f"{name}: repeated", repeated, "the same in both runs of the baseline", ExitCode.UNTESTABLE)]
    parts.append(_part(f"{name}: in order", align(first, _read(kernel)), "the same as the baseline's", ExitCode.CLEAN))
    return parts


def _read(path: Path) -> list[Operation]:
    return list(operations(Trace(path).events()))


def _part(name: str, found: Alignment, same: str, otherwise: ExitCode) -> Part:
    left = len(found.first), len(found.second)
    summary = f"{found.same:,} operations are {same}, one for one"
    if not found.is_identical:
        summary += f"; {left[0]} and {left[1]} could not be aligned"
    summary += f", {len(found.displaced)} come earlier or later" if found.displaced else ""
    summary += f", {len(found.moved)} are of other pages" if found.moved else ""
    return Part(
        name,
        ExitCode.CLEAN if found.is_identical else otherwise,
        summary,
        tuple(_lines(found)),
        {
            "same": found.same,
            "first": left[0],
            "second": left[1],
            "displaced": len(found.displaced),
            "moved": len(found.moved),
        },
    )


def _lines(found: Alignment) -> Iterator[str]:
    kinds = {
        "only in the first": found.first,
        "only in the second": found.second,
        "earlier or later": found.displaced,
        "of other pages": found.moved,
    }
    for title, those in kinds.items():
        yield from (f"{title}: operation {each.number}, {each.call}" for each in those[:_MOST])
        if len(those) > _MOST:
            yield f"{title}: {len(those) - _MOST} more"
