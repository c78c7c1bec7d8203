"""Where a capture comes from: a file that holds enough, or a machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from inspector.budget import DEFAULT
from inspector.capture.file import load
from inspector.capture.settled import settled
from inspector.findings import BadInput, TargetLost, Untestable
from inspector.snapshot import Capture, Scope

if TYPE_CHECKING:
    from inspector.symbols import Symbols
    from inspector.target.core import CoreTarget

Again = tuple[int, Callable[[Capture], Collection[int]]]
"""How many more looks to take, and at which table pages of what the first one brought."""


def _quiet(_: str) -> None:
    """Nobody is told."""


def load_for(path: str, scope: Scope, most: int = DEFAULT) -> Capture:
    """The capture in a file, whose contents may take ``most`` bytes.

    Raises `BadInput` when it cannot be read, is too large, or holds less than ``scope`` needs.
    """
    capture = load(path, most)
    if list(Scope).index(capture.scope) < list(Scope).index(scope):
        raise BadInput(
            f"{path} holds only what '{capture.scope}' needs, and this command needs '{scope}': "
            "make one with 'inspector capture'"
        )
    return capture


def take_from(
    connect: str,
    vmlinux: Path | None,
    image: Path | None,
    *,
    memory: Literal["auto", "process", "gdb"],
    gdb: str | None,
    scope: Scope,
    progress: Callable[[str], None],
    again: Again | None = None,
    most: int = DEFAULT,
) -> Capture:
    """A capture of the machine behind the stub at ``connect``; its kernel's own file serves when none is given.

    What the kernel's file holds may take ``most`` bytes of memory.
    With ``again`` the machine is looked at so many times more, at the pages that the function asks for.

    Raises `BadInput` for unusable kernel files, `TargetLost` when the machine cannot be reached or goes away.
    """
    # Imported here: from a file everything works without gdb, pygdbmi and pyelftools being loaded.
    from inspector.capture.take import look_again, take
    from inspector.symbols import open_symbols
    from inspector.target.connect import attached
    from inspector.target.lent import is_lent, lent

    symbols = None
    if vmlinux is not None or image is not None:  # before attaching: the machine stands still from there on
        symbols = open_symbols(vmlinux=vmlinux, image=image, progress=progress, most=most)
    machine = lent(connect) if is_lent(connect) else attached(connect, memory=memory, gdb=gdb, progress=progress)
    with machine as target:
        if symbols is None:
            kernel = Path(target.kernel_file) if target.kernel_file else None
            symbols = open_symbols(image=kernel, progress=progress, most=most)
        command = " ".join(["inspector", *sys.argv[1:]])
        taken = take(target, symbols, scope=scope, progress=progress, command=command)
        if again is None:
            return taken
        count, pages = again
        return look_again(target, symbols, taken, pages(taken), count, progress)


def take_of_dump(
    core: str,
    vmlinux: Path | None,
    image: Path | None,
    *,
    scope: Scope,
    progress: Callable[[str], None],
    most: int = DEFAULT,
) -> Capture:
    """A capture of the machine in a dump.

    Raises `BadInput` for a file that is no dump of an arm64 machine, and for unusable kernel files; `TargetLost` when
    no kernel is in it, `Untestable` when none is found and the dump has not all of the machine's memory.
    """
    from inspector.symbols import open_symbols
    from inspector.target.core import opened

    if vmlinux is None and image is None:
        raise BadInput("a dump does not say where its kernel's file is: give --vmlinux or --image")
    symbols = open_symbols(vmlinux=vmlinux, image=image, progress=progress, most=most)
    with opened(core, progress) as target:
        try:
            return look_at_dump(target, symbols, scope=scope, progress=progress)
        except TargetLost:
            if not target.incomplete:
                raise
            why = "; ".join(target.incomplete)
            raise Untestable(f"{core} lacks memory without which the kernel in it cannot be followed: {why}") from None


def look_at_dump(
    target: CoreTarget, symbols: Symbols, *, scope: Scope = Scope.FULL, progress: Callable[[str], None] = _quiet
) -> Capture:
    """A capture of an open dump, in which what the dump lacks has that for its reason.  Raises as `take`.

    Of a kernel that runs on meanwhile it is taken several times, see `settled`.
    """
    if target.dump.live:
        return settled(partial(_look_once, target, symbols, scope, progress))
    return _look_once(target, symbols, scope, progress)


def _look_once(target: CoreTarget, symbols: Symbols, scope: Scope, progress: Callable[[str], None]) -> Capture:
    from inspector.capture.take import take
    from inspector.target.dump import LEFT_OUT

    taken = take(target, symbols, scope=scope, progress=progress, command=" ".join(["inspector", *sys.argv[1:]]))
    had = target.memory.had
    return replace(
        taken,
        stopped_seconds=0.0,
        unreadable={pa: f"{why}: {LEFT_OUT}" if had(pa) else why for pa, why in taken.unreadable.items()},
        host=replace(taken.host, notes=(*taken.host.notes, *target.notes)),
    )
