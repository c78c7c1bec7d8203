"""What `inspector capture` says of the file that it wrote."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from inspector.report.document import Bytes, Document, Number
from inspector.report.format import Lines, Painter, count, size
from inspector.snapshot import Capture


class CaptureFile(Document, frozen=True, kw_only=True):
    """`inspector capture`."""

    command: Literal["capture"] = "capture"
    file: str
    size: Bytes
    vms: Number
    table_pages: Number
    stopped_seconds: float
    looks: Annotated[Number, Meta(description="How many times the machine was looked at.")]


def document(path: str, length: int, taken: Capture) -> CaptureFile:
    """`inspector capture`."""
    return CaptureFile(
        file=path,
        size=length,
        vms=len(taken.vms),
        table_pages=len(taken.pages),
        stopped_seconds=taken.stopped_seconds,
        looks=1 + len(taken.looks),
    )


def lines(paint: Painter, path: str, length: int, taken: Capture) -> Lines:
    """The file, what it holds, and how long the machine stood still."""
    looks = f", {1 + len(taken.looks)} looks" if taken.looks else ""
    yield (
        f"{path}: {count(len(taken.vms), 'VM')}, {count(len(taken.pages), 'table page')}, {size(length)}{looks}; "
        f"the machine stood still for {taken.stopped_seconds * 1000:.0f} ms"
    )
