"""Machines that live tests share, and ways to look at one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from fixtures import truth
from inspector.capture.take import take
from inspector.snapshot import Capture, Scope
from inspector.symbols import Symbols, open_symbols
from inspector.target.connect import Backend, open_target
from tests.conftest import kernel_labels
from tests.live.machine import Machine


@dataclass(frozen=True)
class Cell:
    """One machine of the matrix; ``kernel`` ``None`` is the distribution's own."""

    kernel: str | None
    cpu: str
    smp: int
    gic: int = 3

    def __str__(self) -> str:
        return f"{self.kernel or 'default'}-{self.cpu}-smp{self.smp}-gic{self.gic}"


_ALL = (
    Cell(None, "max", 1),
    Cell(None, "max", 2),
    Cell(None, "cortex-a57", 1),
    Cell(None, "cortex-a57", 2),
    Cell(None, "neoverse-n1", 2),
    Cell(None, "cortex-a76", 1, gic=2),
    Cell("6.12", "max", 2),
    Cell("6.12", "cortex-a57", 1),
    Cell("7.3", "max", 2),
    # Generations in between, and another page size.  LPA2 is off there because QEMU 7.2 cannot run a guest with a
    # 52-bit IPA and 16K pages (docs/reach.md).
    Cell("5.10", "max", 2),
    Cell("6.12-16k", "max,lpa2=off", 2),
    Cell("6.19", "max", 2),
    Cell("7.2", "max", 2),
)
CELLS = tuple(cell for cell in _ALL if cell.kernel is None or cell.kernel in kernel_labels())


@dataclass(frozen=True)
class Booted:
    """A machine with its guests idle, and what the exerciser says is true of them."""

    cell: Cell
    machine: Machine
    symbols: Symbols
    truth: truth.Truth

    def capture(self, memory: Backend = "auto", scope: Scope = Scope.FULL) -> Capture:
        return take_from(self.machine, self.symbols, memory, scope)


def take_from(machine: Machine, symbols: Symbols, memory: Backend = "auto", scope: Scope = Scope.FULL) -> Capture:
    """One capture of a running machine, which runs on."""
    target = open_target(machine.gdb_socket, memory=memory)
    try:
        return take(target, symbols, scope=scope)
    finally:
        target.close()


@pytest.fixture(scope="session", params=CELLS, ids=str)
def booted(request: pytest.FixtureRequest) -> Iterator[Booted]:
    """Each machine of the matrix in turn, after the default scenarios; booted once for all modules that look at it."""
    cell: Cell = request.param
    with Machine.start(cell.kernel, cpu=cell.cpu, smp=cell.smp, gic=cell.gic) as machine:
        symbols = open_symbols(image=machine.image)
        yield Booted(cell, machine, symbols, truth.parse(machine.console_text.splitlines()))


@pytest.fixture(scope="module")
def default_machine() -> Iterator[Machine]:
    """The distribution's kernel on ``-cpu max``, two CPUs, after the default scenarios."""
    with Machine.start() as machine:
        yield machine
