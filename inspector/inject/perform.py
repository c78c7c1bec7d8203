"""One fault injected through gdb, into a machine that is attached for it and left running."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from inspector.findings import TargetLost, Untestable
from inspector.inject.catalogue import Do, Fault, Gate, Place
from inspector.inject.instructions import ZR
from inspector.inject.places import EL2, Found, places, plain_store
from inspector.inject.results import Injected
from inspector.kernel.host import find_kernel
from inspector.kernel.memory import StoppedMemory
from inspector.kernel.mode import kvm_mode
from inspector.kernel.objects import HostKernel
from inspector.kernel.space import BadPointer
from inspector.snapshot import Mode
from inspector.symbols import open_symbols
from inspector.symbols.kernel import KernelSymbols
from inspector.target.api import Cpu
from inspector.target.connect import attached
from inspector.target.machine import Machine
from inspector.target.mi import MiSession

_MOST_HITS: Final = 10_000
_HYP_VECTORS: Final = f"{EL2}__kvm_hyp_host_vector"
_IN_IMAGE: Final = (1 << 21) - 1
"""What the address of an image at EL1 and at EL2 have in common: it begins at a multiple of 2 MiB in both."""
_STANDSTILL: Final = 0.1
"""Seconds that a CPU is delayed: a thousand faults of the others, and far less than what RCU calls a stall."""
_DELAYS: Final = 40
"""How often it is: whether another CPU wants the same entry meanwhile is chance."""


def inject(
    fault: Fault,
    connect: str,
    image: Path | None,
    vmlinux: Path | None,
    seconds: float,
    tell: Callable[[str], None],
    armed: Callable[[], None] = lambda: None,
    gdb: str | None = None,
) -> Injected:
    """Stop the kernel there once, do it, and let go; ``armed`` is called when the machine runs with the breakpoint.

    Raises `Untestable` when this kernel has no such place, `TargetLost` as the target.
    """
    symbols = open_symbols(image=image, vmlinux=vmlinux, progress=tell)
    with attached(connect, gdb=gdb, progress=tell, leave="running") as machine:
        cpus = machine.cpus()
        kernel = find_kernel(StoppedMemory(machine.memory), symbols, cpus, tell)
        nvhe = kvm_mode(kernel, cpus) in (Mode.NVHE, Mode.HVHE)
        broken = _Breaking(fault, machine, kernel, symbols, nvhe, _el2_offset(symbols, cpus) if nvhe else 0)
        began = time.monotonic()
        try:
            broken.arm()
            machine.resume()
            armed()
            broken.run(began + seconds)
        finally:
            if machine.session.alive and not machine.session.target_gone:
                machine.stop()
                machine.session.command("-break-delete")
                machine.session.command("-gdb-set scheduler-locking replay")
        return Injected(fault.name, broken.at, broken.passed, time.monotonic() - began, broken.done)


def _el2_offset(symbols: KernelSymbols, cpus: Sequence[Cpu]) -> int:
    """What is to be added to a link address of EL2's own code (nVHE, hVHE).

    While KVM is in use and no guest runs, VBAR_EL2 has that code's vectors (arch/arm64/kvm/hyp/nvhe/host.S).
    """
    vectors = symbols.address(_HYP_VECTORS)
    if vectors is None:
        return 0
    for cpu in cpus:
        value = cpu.registers.get("VBAR_EL2", 0)
        if value and not (value ^ vectors) & _IN_IMAGE:
            return value - vectors
    return 0


class _Breaking:
    """A fault on its way into a machine: `at` is where it was done or would be, `passed` how often it was not meant."""

    def __init__(
        self, fault: Fault, machine: Machine, kernel: HostKernel, symbols: KernelSymbols, nvhe: bool, el2: int
    ) -> None:
        self._fault = fault
        self._machine = machine
        self._session: MiSession = machine.session
        self._kernel = kernel
        self._symbols = symbols
        self._el2 = el2
        self._nvhe = nvhe
        self.passed = 0
        self.done = False
        self._delays = 0
        where = fault.where(nvhe=nvhe)
        self._places = self._addresses(where)
        self._gate = self._gate_at(fault.gate) if fault.gate is not None else 0
        there = fault.then.of_el2() if fault.then is not None and where.function.startswith(EL2) else fault.then
        self._then = self._addresses(there) if there is not None else {}
        self._plain = plain_store(symbols, fault.by) if fault.do is Do.PLAIN else None
        self.at = min(self._places)

    # ---- where

    def _addresses(self, place: Place) -> dict[int, Found]:
        return {self._runtime(found): found for found in places(self._symbols, place, self._fault.name)}

    def _runtime(self, found: Found) -> int:
        if not found.function.startswith(EL2):
            return self._kernel.space.runtime(found.address)
        if not self._el2:
            raise Untestable(
                f"EL2's own code is not in use (VBAR_EL2 has not its vectors): '{self._fault.name}' is in it; "
                "open /dev/kvm and start no guest before"
            )
        return found.address + self._el2 & (1 << 64) - 1

    def _gate_at(self, gate: Gate) -> int:
        place = Place(gate.function)
        return min(self._addresses(place.of_el2() if self._nvhe else place))

    # ---- what happens

    def arm(self) -> None:
        self._break_at([self._gate] if self._gate else self._places)
        self._session.forget_events()

    def run(self, until: float) -> None:
        """Until it is done, the place was reached too often, or the time is over."""
        inside = ""
        while not self.done and self.passed < _MOST_HITS:
            thread = self._reached(until)
            if thread is None:
                self.done = bool(self._delays)
                return
            at = self._value("(unsigned long)$pc")
            if at == self._gate and not inside:
                if self._is_meant_gate():
                    inside = thread
                    self._break_at(self._places)
                    self._continue()
                    continue
            elif at not in self._places:
                raise TargetLost("the machine stopped elsewhere than at the fault: nothing was changed there")
            elif inside in ("", thread) and self._is_meant(self._places[at]):
                self.at = at
                self._do(at, thread, until)
                continue
            self.passed += 1
            self._continue()

    def _do(self, at: int, thread: str, until: float) -> None:
        fault, found = self._fault, self._places[at]
        if fault.do is Do.RETURN:
            self._set(fault.change or "$x0 = 0", "$pc = $x30")
        elif fault.do is Do.SKIP:
            self._set("$pc = $pc + 4")
        elif fault.do is Do.SET:
            self._set(self._named(fault.change, found))
        elif fault.do is Do.PLAIN and self._plain is not None:
            stored = {self._plain.source: self._register(found.source), self._plain.base: self._register(found.base)}
            self._break_at(())
            self._elsewhere(self._kernel.space.runtime(self._plain.address), stored)
            self._set(f"$pc = {at + 4:#x}")
        elif fault.do is Do.LATER:
            self._later(at, thread, until)
            return
        elif fault.do is Do.DELAY:
            self._delay(thread)
            self._delays += 1
            if self._delays < _DELAYS:
                self._break_at(self._places)
                self._continue()
                return
        self.done = True

    def _later(self, at: int, thread: str, until: float) -> None:
        """Pass the instruction by, and run it with the registers of now once another has run on this CPU."""
        found = self._places[at]
        held = {number: self._register(number) for number in {found.source, found.base} - {ZR}}
        self._set(f"$pc = {at + 4:#x}")
        self._break_at(self._then)
        self._continue()
        while (there := self._reached(until)) is not None:
            if there == thread:
                self._break_at(())
                self._step()
                self._elsewhere(at, held)
                self.done = True
                return
            self._continue()

    def _delay(self, thread: str) -> None:
        """This CPU stands still, and another runs: gdb resumes one thread of its choice."""
        others = [each["id"] for each in self._session.command("-thread-info").payload["threads"]]
        others = [each for each in others if each != thread]
        if not others:
            raise Untestable(f"one CPU is no race: '{self._fault.name}' needs two (run_qemu.sh --smp 2)")
        self._break_at(())
        self._session.command("-gdb-set scheduler-locking on")
        self._session.command(f"-exec-continue --thread {others[0]}")
        time.sleep(_STANDSTILL)
        self._machine.stop()
        self._session.command("-gdb-set scheduler-locking replay")
        self._session.command(f"-thread-select {thread}")

    # ---- one CPU's registers

    def _is_meant_gate(self) -> bool:
        gate = self._fault.gate
        assert gate is not None
        # The caller of EL2's code is the hypercall's handler.
        if gate.caller and not self._nvhe and not self._is_called_by(gate.caller, entry=True):
            return False
        return not gate.when or bool(self._value(gate.when))

    def _is_meant(self, found: Found) -> bool:
        """The condition holds, and the caller is one of those."""
        fault = self._fault
        at_el2 = found.function.startswith(EL2)
        if fault.caller and not at_el2 and not self._is_called_by(fault.caller, entry=found.is_entry):
            return False
        return not fault.when or bool(self._value(self._named(fault.when, found)))

    def _is_called_by(self, callers: str, *, entry: bool) -> bool:
        """By x30, or by the frame record (AAPCS64) where another function was called since."""
        for each in ("$x30",) if entry else ("$x30", "*(unsigned long *)($x29 + 8)"):
            # PACIASP has signed it, but at an entry, in bits that are ones in all of the kernel's text.
            ones = -(1 << (~self._symbols.link_text & (1 << 64) - 1).bit_length()) & (1 << 64) - 1
            near = self._symbols.nearest((self._value(f"(unsigned long){each}") | ones) - self._kernel.space.slide)
            if near is not None and near[0].startswith(tuple(callers.split())):
                return True
        return False

    def _named(self, text: str, found: Found) -> str:
        text = text.replace("{t}", f"x{found.source}").replace("{n}", f"x{found.base}")
        if "{page}" not in text:
            return text
        page = self._register(found.base) & -self._kernel.space.geometry.granule
        try:
            return text.replace("{page}", f"{self._kernel.space.pa(page):#x}")
        except BadPointer as error:
            raise TargetLost(f"the entry at {page:#x} is in no page of the kernel's: {error}") from error

    def _register(self, number: int) -> int:
        return 0 if number == ZR else self._value(f"(unsigned long)$x{number}")

    def _elsewhere(self, address: int, registers: dict[int, int]) -> None:
        """Run one instruction with these registers, and put back what they were."""
        kept = {f"$x{number}": self._register(number) for number in registers}
        kept["$pc"] = self._value("(unsigned long)$pc")
        self._set(*(f"$x{number} = {value:#x}" for number, value in registers.items()), f"$pc = {address:#x}")
        self._step()
        self._set(*(f"{name} = {value:#x}" for name, value in kept.items()))

    # ---- gdb

    def _step(self) -> None:
        """One instruction of the selected thread, with all others standing (QEMU holds its interrupts back)."""
        self._session.command("-gdb-set scheduler-locking on")
        self._session.forget_events()
        self._session.command("-exec-step-instruction")
        self._session.wait_event(lambda event: event["message"] == "stopped")
        self._session.command("-gdb-set scheduler-locking replay")

    def _break_at(self, addresses: Sequence[int] | dict[int, Found]) -> None:
        self._session.command("-break-delete")
        for address in addresses:
            self._session.command(f"-break-insert *{address:#x}")

    def _continue(self) -> None:
        self._session.command("-exec-continue --all")

    def _reached(self, until: float) -> str | None:
        """The thread that stopped; ``None`` when the time is over."""
        session = self._session
        left = until - time.monotonic()
        if left <= 0:
            return None
        try:
            event = session.wait_event(lambda event: event["message"] == "stopped", timeout=left)
        except TargetLost:
            if not session.alive or session.target_gone:
                raise
            return None
        return str((event.get("payload") or {}).get("thread-id", ""))

    def _value(self, expression: str) -> int:
        return int(self._session.command(f'-data-evaluate-expression "{expression}"').payload["value"], 0)

    def _set(self, *changes: str) -> None:
        for change in changes:
            self._session.command(f'-data-evaluate-expression "{change}"')
