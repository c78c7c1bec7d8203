"""Where gdb stops in a kernel's live text, and what is known to have run when it does.

A stop costs a millisecond and more, so it is put where its instruction can be done by writing registers, and says all
that its basic block is sure to run.  Encodings: DDI 0487 C4.1 (top level), C6.2 (instructions).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from inspector.codec import tlbi
from inspector.codec.tlbi import Operand
from inspector.trace.instructions import event_of

Move = tuple[str | int, ...]
"""How an instruction is done with all CPUs stopped: a `Stop.move` of ``gdb_scripts/trace_agent.py``."""

STEP: Move = ("step",)
_NEXT: Move = ("next",)
_NOP = 0xD503201F
_ZERO = 31
_MOST_STATES = 64


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def move_of(word: int) -> Move:
    """The way an instruction is done, `STEP` for one that only the CPU does exactly.

    With every CPU stopped at an instruction's edge a barrier has nothing to order.  What PSTATE.BTYPE was before a NOP
    does not matter: a branch that sets it goes to BTI or PACIASP, never to these.
    """
    if word == _NOP or word & 0xFFFFF0FF in (0xD503309F, 0xD50330BF, 0xD50330DF):
        return _NEXT  # NOP, DSB, DMB, ISB
    if word & 0xFFFFFC1F == 0xD65F0000:
        return ("return", word >> 5 & 31)
    if word & 0xFFE0FFE0 == 0xAA0003E0 and word & 31 != _ZERO and word >> 16 & 31 != _ZERO:
        return ("add", word & 31, word >> 16 & 31, 0)  # MOV (register)
    if word & 0x7F800000 == 0x11000000 and word >> 31:  # ADD (immediate), 64 bits: 31 is sp
        number = (word >> 10 & 0xFFF) << (12 if word >> 22 & 1 else 0)
        return ("add", word & 31, word >> 5 & 31, number)
    return STEP


def target_of(word: int, at: int) -> int | None:
    """Where a direct branch at ``at`` goes; ``None`` for any other instruction, and for BL, which comes back."""
    if word & 0xFC000000 == 0x14000000:
        return at + 4 * _signed(word & 0x3FFFFFF, 26)
    if word & 0xFF000010 == 0x54000000 or word & 0x7E000000 == 0x34000000:
        return at + 4 * _signed(word >> 5 & 0x7FFFF, 19)
    if word & 0x7E000000 == 0x36000000:
        return at + 4 * _signed(word >> 5 & 0x3FFF, 14)
    return None


def _called(word: int, at: int) -> int | None:
    """Where a BL at ``at`` goes."""
    return at + 4 * _signed(word & 0x3FFFFFF, 26) if word & 0xFC000000 == 0x94000000 else None


def _goes_on(word: int) -> bool:
    """Whether the instruction after this one may be next: not after B, BR, RET (with their authenticated forms).

    After BRK it may: a WARN does that.
    """
    return not (word & 0xFC000000 == 0x14000000 or (word & 0xFE000000 == 0xD6000000 and word >> 21 & 15 not in (1, 9)))


def _is_branch(word: int) -> bool:
    return word & 0x7C000000 == 0x14000000 or target_of(word, 0) is not None or word & 0xFE000000 == 0xD6000000


@dataclass(frozen=True)
class Place:
    """Where a function is stopped in at its beginning or end: ``frame`` bytes below the stack pointer it was entered
    with."""

    address: int
    frame: int
    move: Move


_PASSED = (
    (0xFFFFF01F, 0xD503201F),  # hints: NOP, BTI, PACIASP
    (0xFFFFFFFF, 0xAA1E03E9),  # mov x9, x30 (ftrace)
    (0xFFFFFFE0, 0xD5384100),  # mrs Xt, sp_el0 (current), where Xt is no argument: see below
)
_MOST_ARGUMENTS = 8


def entry_of(address: int, words: Sequence[int]) -> Place:
    """The first place from ``address`` on where the arguments are still in their registers and no step is needed."""
    frame = 0
    for number, word in enumerate(words):
        move = move_of(word)
        if move == _NEXT or (move[0] == "add" and move[1] == 29):
            return Place(address + 4 * number, frame, move)
        if word & 0xFF8003FF == 0xD10003FF and not word >> 22 & 1:
            frame += word >> 10 & 0xFFF  # sub sp, sp, #n
        elif word & 0xFFC003E0 == 0xA98003E0:
            frame -= 8 * _signed(word >> 15 & 0x7F, 7)  # stp Xt, Xu, [sp, #-n]!
        elif word & 0xFFC003E0 == 0xA90003E0 or word & 0xFFC003E0 == 0xF90003E0:
            pass  # stp and str to [sp, #n]
        elif not any(word & mask == value for mask, value in _PASSED) or (
            word & 0xFFFFFFE0 == 0xD5384100 and word & 31 < _MOST_ARGUMENTS
        ):
            break
    return Place(address, 0, move_of(words[0]))


def leave_of(address: int, words: Sequence[int], at: int) -> Place:
    """The place for a return at ``words[at]`` of the function at ``address``: where its frame is given back, if nothing
    but hints (AUTIASP) come after, else itself."""
    targets = {target_of(word, address + 4 * number) for number, word in enumerate(words)}
    place = at
    while place > 0 and address + 4 * place not in targets:
        place -= 1
        word = words[place]
        if word & 0xFF8003FF == 0x910003FF and not word >> 22 & 1:  # add sp, sp, #n
            return Place(address + 4 * place, word >> 10 & 0xFFF, move_of(word))
        if word & 0xFFFFF01F != _NOP:
            break
    return Place(address + 4 * at, 0, move_of(words[at]))


@dataclass(frozen=True)
class Telling:
    """A stop in a function that invalidates: see ``Stop`` of ``gdb_scripts/trace_agent.py``."""

    address: int
    first: tuple[int, ...]
    again: tuple[int, ...]
    told: tuple[int, ...]
    closes: bool
    move: Move


def _needs_stop(word: int) -> bool:
    """Its operand register must be looked at."""
    decoded = tlbi.decode_instruction(word)
    return decoded is not None and decoded[0].operand is not Operand.NONE and decoded[1] != _ZERO


def _is_tlbi(word: int) -> bool:
    return tlbi.decode_instruction(word) is not None


class _Function:
    """One function's live text as basic blocks."""

    def __init__(self, address: int, words: Sequence[int], no_return: frozenset[int]) -> None:
        self.address, self.words, self._no_return = address, words, no_return
        # What alternatives and static keys (live text has them patched in or out) leave unreached is no part of it.
        places, waiting = set[int](), [0]
        while waiting:
            if (at := waiting.pop()) not in places:
                places.add(at)
                waiting += self.after(at)
        targets = {followed for at in places for followed in self.after(at) if followed != at + 1}
        self.leaders = {0, *targets, *(at + 1 for at in places if _is_branch(words[at]))}
        self.told = {at for at in places if is_told(words[at])}

    def after(self, at: int) -> Iterator[int]:
        """The places that may be next; none where the function is left."""
        word = self.words[at]
        target = target_of(word, self.address + 4 * at)
        if target is not None and self.address <= target < self.address + 4 * len(self.words):
            yield (target - self.address) // 4
        called = _called(word, self.address + 4 * at)
        if _goes_on(word) and called not in self._no_return and at + 1 < len(self.words):
            yield at + 1

    def group(self, at: int) -> range:
        """``at`` and what is sure to run after it: up to the end of its block."""
        end = at + 1
        while end < len(self.words) and end not in self.leaders:
            end += 1
        return range(at, end)


def is_told(word: int) -> bool:
    """An event of a trace: an invalidation, a barrier, a write of a register that counts."""
    return event_of(word, 0) is not None


def tellings_of(address: int, words: Sequence[int], no_return: frozenset[int] = frozenset()) -> tuple[Telling, ...]:
    """The stops that tell every invalidation and barrier of a function, in the order of their addresses.

    ``no_return`` are functions that do not come back: what follows a call of theirs is another block's.
    """
    function = _Function(address, words, no_return)
    stops: set[int] = set()
    for at in sorted(function.told):
        if not _is_tlbi(words[at]):
            continue
        block_start = at
        while block_start not in function.leaders:
            block_start -= 1
        mine = [stop for stop in stops if block_start <= stop < at]
        if mine and not _needs_stop(words[at]):
            continue
        stops.add(at)
    while True:
        shared = {at for stop in stops for at in _shared(function, stop, stops)}
        known = _known(function, stops, shared)
        if known is not None:
            break
        # What does not follow from where one stops has a stop of its own.
        stops |= function.told - shared
    return tuple(
        _telling(function, at, _shared(function, at, stops), *known[at], _closes(function, at, stops))
        for at in sorted(stops)
    )


def _shared(function: _Function, stop: int, stops: set[int]) -> list[int]:
    """The places of what a stop tells beside its own instruction: those that follow in its block."""
    found = []
    for at in function.group(stop)[1:]:
        if at in stops:
            break
        if at in function.told:
            found.append(at)
    return found


def _known(
    function: _Function, stops: set[int], shared: set[int]
) -> dict[int, tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """For each stop what ran untold before it, when it is the function's first and when it is not; ``None``: that
    depends on the way there, or something is never told."""
    seen: dict[int, set[tuple[bool, tuple[int, ...]]]] = {}
    waiting: list[tuple[int, bool, tuple[int, ...]]] = [(0, True, ())]
    while waiting:
        at, first, untold = waiting.pop()
        states = seen.setdefault(at, set())
        if (first, untold) in states:
            continue
        states.add((first, untold))
        if len(states) > _MOST_STATES:
            return None
        if at in stops:
            first, untold = False, ()
        elif at in function.told and at not in shared:
            untold = (*untold, function.words[at])
        followers = list(function.after(at))
        if not followers and untold and function.words[at] & 0xFFFFFC1F == 0xD65F0000:
            return None
        waiting += [(next_at, first, untold) for next_at in followers]
    found = {}
    for at in stops:
        ways = {True: set[tuple[int, ...]](), False: set[tuple[int, ...]]()}
        for first, untold in seen.get(at, ()):
            ways[first].add(untold)
        if any(len(each) > 1 for each in ways.values()):
            return None
        found[at] = (next(iter(ways[True]), ()), next(iter(ways[False]), ()))
    return found


def _closes(function: _Function, stop: int, stops: set[int]) -> bool:
    """No other stop can follow before the function is left."""
    waiting, seen = list(function.after(stop)), set[int]()
    while waiting:
        at = waiting.pop()
        if at in stops:
            return False
        if at not in seen:
            seen.add(at)
            waiting += function.after(at)
    return True


def _place(function: _Function, at: int) -> int:
    """Where to stop for an invalidation: after it, where its operand is in its register still and nothing has to be put
    back to run it.  Best at what another observer of barriers and invalidations does not miss when it is not run."""
    barriers = []
    for place in function.group(at)[1:]:
        word = function.words[place]
        move = move_of(word)
        if word == _NOP or move[0] == "add":
            return place
        if move == _NEXT:
            barriers.append(place)
        elif not _is_tlbi(word) or _needs_stop(word):
            break
    return barriers[0] if barriers and move_of(function.words[at]) == STEP else at


def _telling(
    function: _Function,
    at: int,
    shared: Sequence[int],
    first: tuple[int, ...],
    again: tuple[int, ...],
    closes: bool,
) -> Telling:
    place = _place(function, at)
    told = (function.words[at], *(function.words[each] for each in shared))
    return Telling(function.address + 4 * place, first, again, told, closes, move_of(function.words[place]))
