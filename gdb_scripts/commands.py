"""Runs inside gdb: the ``stage2`` commands, which ``gdb_scripts/stage2.py`` loads.

What the tool shows on a command line, and a breakpoint on operations and a watch on a translation, which no debugger
has.  The tool runs beside this gdb, which lends it memory and registers; imported here are the standard library and the
parts of the tool that need nothing else.
"""

from __future__ import annotations

import shlex
from typing import Any

import gdb

from gdb_scripts import facts, lend, operations, printers, watch

_LOOKS = {
    "info": "The host: kernel, KASLR slide, mode, CPU features, memory.",
    "vms": "Every VM with VTTBR and VTCR decoded, its MMUs, memslots and vCPUs.",
    "registers": "Every CPU's registers, decoded, and whether VTTBR_EL2 is in force.",
    "memslots": "Every VM's memslots, and what backs them.",
    "dump": "Stage-2 tables as merged ranges, or entry by entry: stage2 dump [--vm VM] [--tree] [--range A-B].",
    "walk": "Translate one guest address, level by level: stage2 walk IPA [--vm VM].",
    "reverse": "Which guests map a physical address: stage2 reverse PA.",
    "check": "Hold every table against the invariants: stage2 check [--vm VM].",
    "diff": "Live tables against what the model makes of the same mappings.",
    "capture": "Write all of it to a file: stage2 capture FILE.",
}
"""Sub-commands that are the tool's own."""

_HELP = f"""KVM/arm64 stage-2 page tables of the host that this gdb is attached to.

{"".join(f"stage2 {name} -- {text}{chr(10)}" for name, text in _LOOKS.items())}stage2 decode -- What 64 bits mean.
stage2 break -- Stop in an operation that touches a guest range.
stage2 finish -- Run on to the return of the operation that stopped.
stage2 watch -- Who changes this translation?

The functions $s2_pa(IPA, VM), $s2_desc(IPA, VM) and $s2_ipa(HVA, VM) can be used in expressions and conditions."""


class _Stage2(gdb.Command):  # type: ignore[misc]
    __doc__ = _HELP

    def __init__(self) -> None:
        super().__init__("stage2", gdb.COMMAND_DATA, prefix=True)

    def invoke(self, argument: str, from_tty: bool) -> None:
        gdb.execute("help stage2", from_tty)


class _Command(gdb.Command):  # type: ignore[misc]
    """A sub-command: `do` gets its words."""

    name = ""

    def __init__(self) -> None:
        super().__init__(f"stage2 {self.name}", gdb.COMMAND_DATA)

    def invoke(self, argument: str, from_tty: bool) -> None:
        self.dont_repeat()
        try:
            words = shlex.split(argument)
        except ValueError as error:
            raise gdb.GdbError(f"{argument}: {error}") from None
        try:
            self.do(words)
        except KeyboardInterrupt:
            raise gdb.GdbError("interrupted; the machine stands as it was") from None

    def do(self, words: list[str]) -> None:
        raise NotImplementedError

    def complete(self, text: str, word: str) -> Any:
        words = text.split()
        if words[-1:] == ["--vm"] or words[-2:-1] == ["--vm"]:
            return [name for name in facts.vm_names() if name.startswith(word)]
        return gdb.COMPLETE_NONE


class _Look(_Command):
    """One of the tool's own."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.__doc__ = f"{text}\n\nAs 'inspector {name}', whose options it takes ('stage2 {name} --help')."
        super().__init__()

    def do(self, words: list[str]) -> None:
        facts.forget()
        code = lend.run([self.name, *words], gdb.write)
        gdb.set_convenience_variable("s2_exitcode", code)


class _Decode(_Look):
    """Needs no machine."""

    def do(self, words: list[str]) -> None:
        words = [str(operations.number(word)) if word.startswith("$") else word for word in words]
        lend.run_alone(["decode", *words], gdb.write)


def _take(words: list[str], option: str) -> str | None:
    """The value of ``option``, taken out of ``words``."""
    if option not in words:
        return None
    at = words.index(option)
    if at + 1 >= len(words):
        raise gdb.GdbError(f"{option} needs a value")
    value = words[at + 1]
    del words[at : at + 2]
    return value


def _flag(words: list[str], option: str) -> bool:
    if option not in words:
        return False
    words.remove(option)
    return True


class _Break(_Command):
    """Stop in a stage-2 operation: stage2 break map|unmap|... [if overlaps(A-B)] [--vm VM]

    OPERATION is the kernel's name, with or without kvm_pgtable_stage2_.  Shown at the stop: the arguments, and how the
    range is translated before; with 'stage2 finish', what was returned, and how it is translated after."""

    name = "break"

    def do(self, words: list[str]) -> None:
        vm = _take(words, "--vm")
        if not words:
            raise gdb.GdbError("stage2 break what? An operation: map, unmap, wrprotect, ...")
        name, rest = words[0], words[1:]
        within = None
        if rest:
            if rest[0] != "if":
                raise gdb.GdbError(f"'{rest[0]}' is not 'if overlaps(A-B)'")
            within = operations.interval("".join(rest[1:]))
        known = facts.facts(fresh=True)
        tables = {known.table(vm).pgt: known.table(vm)} if vm is not None else {}
        operations.Operation(known, operations.find(known, name), tables, within)
        if not known.kvm:
            gdb.write(f"{facts.NO_KVM}: nothing stops there\n")


class _Finish(_Command):
    """Run on to the return of the operation that 'stage2 break' stopped in, and show what it did."""

    name = "finish"

    def do(self, words: list[str]) -> None:
        pc = int(gdb.parse_and_eval("(unsigned long)$pc"))
        for point in gdb.breakpoints():
            if isinstance(point, operations.Operation) and int(point.location.removeprefix("*"), 16) == pc:
                operations.Return(point, int(gdb.parse_and_eval("(unsigned long)$sp")) & (1 << 64) - 1)
                gdb.execute("continue")
                return
        raise gdb.GdbError("this is not where a 'stage2 break' stops")


class _Watch(_Command):
    """Who changes the translation of a guest address? stage2 watch IPA [--vm VM] [--count N | --continue]

    Runs the machine until an entry that takes part in the translation has another value, and shows which, the value
    before and after, and the kernel's functions that led there.  --count N: after N changes; --continue: until Ctrl-C.
    A store of the same value and a cmpxchg that loses are no changes."""

    name = "watch"

    def do(self, words: list[str]) -> None:
        vm, count, forever = _take(words, "--vm"), _take(words, "--count"), _flag(words, "--continue")
        if len(words) != 1:
            raise gdb.GdbError("stage2 watch takes one IPA")
        if count is not None and not (count.isdigit() and int(count)):
            raise gdb.GdbError(f"--count {count}: a number of changes")
        known = facts.facts(fresh=True)
        ipa = operations.number(words[0])
        one = watch.Watch(known, known.table(vm), ipa, gdb.write)
        with lend.as_selected():
            why = one.follow(int(count) if count else None, count is None and not forever)
        facts.forget()
        facts.moved()
        gdb.write(f"{why} ({one.changes} changes, {one.stops} stops)\n")


class _Function(gdb.Function):  # type: ignore[misc]
    """``$s2_…(address[, VM])``."""

    def __init__(self) -> None:
        super().__init__(self.called)

    called = ""

    def invoke(self, address: Any, vm: Any = None) -> Any:
        table = facts.facts().table(None if vm is None else vm.string())
        return self.of(table, int(address) & (1 << 64) - 1)

    def of(self, table: facts.Table, address: int) -> int:
        raise NotImplementedError


class _Pa(_Function):
    """$s2_pa(IPA[, "vm0"]): the physical address behind a guest's; an error where nothing is mapped."""

    called = "s2_pa"

    def of(self, table: facts.Table, address: int) -> int:
        found = table.walk(address)
        if found.pa is None:
            raise gdb.GdbError(f"IPA {address:#x} of {table.vm}: {found.verdict}")
        return found.pa


class _Descriptor(_Function):
    """$s2_desc(IPA[, "vm0"]): the entry at which the translation of a guest's address ends."""

    called = "s2_desc"

    def of(self, table: facts.Table, address: int) -> int:
        found = table.walk(address)
        if not found.steps:
            raise gdb.GdbError(f"IPA {address:#x} of {table.vm}: {found.verdict}")
        return found.steps[-1].descriptor.raw


class _Ipa(_Function):
    """$s2_ipa(HVA[, "vm0"]): the guest's address of what the VMM has at its own."""

    called = "s2_ipa"

    def of(self, table: facts.Table, address: int) -> int:
        page = table.geometry.granule
        for first, frames, hva in table.memslots:
            if 0 <= address - hva < frames * page:
                return first * page + address - hva
        raise gdb.GdbError(f"HVA {address:#x} is in no memslot of {table.vm}")


_loaded: list[_Stage2] = []


def load() -> None:
    """Give gdb the commands, the functions and the printers; once, however often they are sourced."""
    if _loaded:
        return
    _loaded.append(_Stage2())
    for name, text in _LOOKS.items():
        _Look(name, text)
    _Decode("decode", "What 64 bits of a page table, a register or a TLBI operand mean: stage2 decode VALUE --level N.")
    for each in (_Break, _Finish, _Watch, _Pa, _Descriptor, _Ipa):
        each()
    gdb.events.stop.connect(operations.show(gdb.write))
    gdb.events.cont.connect(facts.moved)
    printers.load()
