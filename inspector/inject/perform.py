"""One fault injected through gdb, into a machine that is attached for it and left running."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path

from inspector.findings import TargetLost, Untestable
from inspector.inject.catalogue import At, Do, Fault
from inspector.inject.results import Injected
from inspector.kernel.host import find_kernel
from inspector.kernel.memory import StoppedMemory
from inspector.symbols import open_symbols
from inspector.symbols.kernel import KernelSymbols
from inspector.target.connect import attached
from inspector.target.mi import MiSession

_MOST_HITS = 10_000
_MOST_CODE = 1 << 12


def place(symbols: KernelSymbols, fault: Fault) -> tuple[int, int]:
    """The instruction's link address, and the number of its first register.

    Raises `Untestable` when this kernel has no such function or instruction.
    """
    names = fault.function.split()
    start = next((at for name in names if (at := symbols.address(name)) is not None), None)
    if start is None:
        raise Untestable(f"{symbols.description} has no {' or '.join(names)}: '{fault.name}' cannot be injected")
    if fault.at is At.ENTRY:
        return start, 0
    end = start + 4
    while end - start < _MOST_CODE and (near := symbols.nearest(end)) is not None and near[1]:
        end += 4
    text = symbols.text(start, end - start) or b""
    words = struct.unpack(f"<{len(text) // 4}I", text)
    found = [at for at, word in enumerate(words) if fault.at.matches(word)]
    if fault.number >= len(found):
        raise Untestable(f"{fault.function} of {symbols.description} has no such instruction: '{fault.name}'")
    return start + 4 * found[fault.number], words[found[fault.number]] & 31


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

    Raises `Untestable` as `place`, `TargetLost` as the target.
    """
    symbols = open_symbols(image=image, vmlinux=vmlinux, progress=tell)
    address, register = place(symbols, fault)
    with attached(connect, gdb=gdb, progress=tell, leave="running") as machine:
        kernel = find_kernel(StoppedMemory(machine.memory), symbols, machine.cpus(), tell)
        at = address + kernel.space.slide
        session = machine.session
        session.command(f"-break-insert *{at:#x}")
        session.forget_events()
        began = time.monotonic()
        machine.resume()
        armed()
        passed, done = 0, False
        try:
            while not done and passed < _MOST_HITS and (left := seconds - (time.monotonic() - began)) > 0:
                if not _reached(session, left):
                    break
                if _value(session, "(unsigned long)$pc") != at:
                    raise TargetLost("the machine stopped elsewhere than at the fault: nothing was changed there")
                if not _is_meant(session, symbols, fault, register, kernel.space.slide):
                    passed += 1
                    session.command("-exec-continue --all")
                    continue
                _do(session, fault, register)
                done = True
        finally:
            if session.alive and not session.target_gone:
                machine.stop()
                session.command("-break-delete")
        return Injected(fault.name, at, passed, time.monotonic() - began, done)


def _reached(session: MiSession, seconds: float) -> bool:
    try:
        session.wait_event(lambda event: event["message"] == "stopped", timeout=seconds)
    except TargetLost:
        if not session.alive or session.target_gone:
            raise
        return False
    return True


def _is_meant(session: MiSession, symbols: KernelSymbols, fault: Fault, register: int, slide: int) -> bool:
    """The condition holds, and the caller is one of those."""
    if fault.caller and not _is_called_by(session, symbols, fault, slide):
        return False
    return not fault.when or bool(_value(session, _named(fault.when, register)))


def _is_called_by(session: MiSession, symbols: KernelSymbols, fault: Fault, slide: int) -> bool:
    """By x30, or by the frame record (AAPCS64) where another function was called since."""
    where = ("$x30",) if fault.at is At.ENTRY else ("$x30", "*(unsigned long *)($x29 + 8)")
    for each in where:
        # PACIASP has signed it, but at an entry, in bits that are ones in all of the kernel's text.
        ones = -(1 << (~symbols.link_text & (1 << 64) - 1).bit_length()) & (1 << 64) - 1
        near = symbols.nearest((_value(session, f"(unsigned long){each}") | ones) - slide)
        if near is not None and near[0].startswith(tuple(fault.caller.split())):
            return True
    return False


def _named(text: str, register: int) -> str:
    return text.replace("{t}", f"x{register}")


def _value(session: MiSession, expression: str) -> int:
    return int(session.command(f'-data-evaluate-expression "{expression}"').payload["value"], 0)


def _do(session: MiSession, fault: Fault, register: int) -> None:
    if fault.do is Do.RETURN:
        changes = [fault.change or "$x0 = 0", "$pc = $x30"]
    elif fault.do is Do.SKIP:
        changes = ["$pc = $pc + 4"]
    else:
        changes = [fault.change]
    for change in changes:
        session.command(f'-data-evaluate-expression "{_named(change, register)}"')
