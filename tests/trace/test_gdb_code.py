"""Where gdb stops: an instruction is done as a CPU does it, and on every way through a function what ran is told."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from inspector.symbols import KernelSymbols, open_symbols
from inspector.trace.functions import FUNCTIONS, INVALIDATING, Role
from inspector.trace.gdb_code import STEP, entry_of, leave_of, move_of, target_of, tellings_of
from inspector.trace.instructions import event_of
from inspector.trace.plan import EXIT, make_plan
from tests.conftest import kernel_labels
from tests.target.conftest import CODE, Qemu, qemu_starter, raw_connect, raw_request

NOP, RET = 0xD503201F, 0xD65F03C0
FORMS = (
    *(NOP, 0xD5033B9F, 0xD5033A9F, 0xD503379F, 0xD5033BBF, 0xD5033FDF),  # nop, dsb ish, ishst, nsh, dmb ish, isb
    *(RET, 0xD65F00A0, 0xAA1E03E9, 0xAA1403E0),  # ret, ret x5, mov x9, x30, mov x0, x20
    *(
        0x91400421,
        0x9100C3FD,
        0x9102C3FF,
        0x910003FD,
    ),  # add: x1, x1, #1, lsl #12; x29, sp, #48; sp, sp, #176
)
LABELS = [label for label in kernel_labels() if label != "5.10"]


@pytest.fixture(scope="module", params=LABELS)
def symbols(request: pytest.FixtureRequest) -> KernelSymbols:
    return open_symbols(image=Path(os.environ["INSPECTOR_KERNELS"]) / request.param / "vmlinuz")


def words_of(symbols: KernelSymbols, low: int, high: int) -> tuple[int, ...]:
    text = symbols.text(low, high - low)
    assert text is not None
    return struct.unpack(f"<{len(text) // 4}I", text)


@pytest.fixture(scope="module")
def qemu(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qemu]:
    with qemu_starter(tmp_path_factory.mktemp("moves")) as start:
        yield start()


@pytest.mark.live
def test_a_move_is_what_the_cpu_does(qemu: Qemu) -> None:
    """Registers before and after a step of QEMU's, for each form and for instructions of a real pgtable.c."""
    image = open_symbols(image=Path(os.environ["INSPECTOR_KERNELS"]) / LABELS[0] / "vmlinuz")
    found = {word for word in words_of(image, *make_plan(image).walkers) if move_of(word) != STEP}
    assert len(found) > 50
    chance = random.Random(1)
    words = [*FORMS, *sorted(found)]
    assert not [hex(word) for word in FORMS if move_of(word) == STEP]
    here = CODE + 0x1000
    with raw_connect(qemu.stub) as stub:
        raw_request(stub, b"qSupported:multiprocess+")
        raw_request(stub, b"qXfer:features:read:target.xml:0,7f0")
        for word in words:
            before = [chance.randrange(1 << 64) & ~3 for _ in range(31)] + [CODE + 0x8000, here]
            assert raw_request(stub, b"M%x,4:%s" % (here, word.to_bytes(4, "little").hex().encode())) == b"OK"
            for register, value in enumerate(before):
                packet = b"P%x=%s" % (register, value.to_bytes(8, "little").hex().encode())
                assert raw_request(stub, packet) == b"OK"
            stub.sendall(b"$vCont;s:p1.1#%02x" % (sum(b"vCont;s:p1.1") % 256))
            while b"#" not in stub.recv(4096).partition(b"T05")[2]:
                pass
            stub.sendall(b"+")
            data = bytes.fromhex(raw_request(stub, b"g").decode())
            assert list(struct.unpack_from("<33Q", data)) == moved(word, before), hex(word)


def moved(word: int, before: list[int]) -> list[int]:
    """The registers after what `move_of` says."""
    after = list(before)
    after[32] += 4
    kind, *rest = move_of(word)
    numbers = [int(each) for each in rest]
    if kind == "return":
        after[32] = before[numbers[0]]
    elif kind == "add":
        after[numbers[0]] = (before[numbers[1]] + numbers[2]) % (1 << 64)
    return after


def called(word: int, at: int) -> int:
    """Where a BL goes; 0 for anything else."""
    return at + 4 * ((word & 0x3FFFFFF ^ 0x2000000) - 0x2000000) if word >> 26 == 0b100101 else 0


def walked(words: tuple[int, ...], address: int, chance: random.Random) -> Iterator[int]:
    """A way through a function, place by place: conditional branches either way.  Ends at its return, or elsewhere."""
    at = 0
    for _ in range(400):
        if not 0 <= at < len(words):
            return
        yield at
        word = words[at]
        if word == RET:
            return
        target = target_of(word, address + 4 * at)
        always = word & 0xFC000000 == 0x14000000
        if target is not None and (always or chance.random() < 0.5):
            at = (target - address) // 4
        else:
            at += 1


def test_every_way_through_tells_what_ran(symbols: KernelSymbols) -> None:
    """In the order in which it ran, each once: what follows in a block is told with what is stopped at."""
    chance = random.Random(2)
    ways = 0
    fail = frozenset({symbols.require("__stack_chk_fail")})
    for name in INVALIDATING:
        address = symbols.address(name)
        if address is None:
            continue
        (high,) = (high for low, high in make_plan(symbols).invalidating if low == address)
        words = words_of(symbols, address, high)
        stops = {(each.address - address) // 4: each for each in tellings_of(address, words, fail)}
        for _ in range(300):
            way = list(walked(words, address, chance))
            if words[way[-1]] != RET or any(called(words[at], address + 4 * at) in fail for at in way):
                continue
            ways += 1
            ran = [words[at] for at in way if event_of(words[at], 0) is not None]
            told: list[int] = []
            entered = False
            for at in way:
                if at in stops:
                    stop = stops[at]
                    told += [*(stop.again if entered else stop.first), *stop.told]
                    entered = not stop.closes
            assert told == ran, name
            assert not entered, name
    assert ways > 100


def test_entries_and_returns(symbols: KernelSymbols) -> None:
    """The operations need no step, neither to be entered nor to be left, and their stack pointer is known."""
    plan = make_plan(symbols)
    for number, name in enumerate(plan.functions):
        if FUNCTIONS[name].role is not Role.OPERATION:
            continue
        mine = [(address, what) for address, what, _ in plan.probes if what % EXIT == number]
        low, high = min(mine)[0], max(mine)[0] + 4
        words = words_of(symbols, low, high)
        entry = entry_of(low, words)
        assert entry.move != STEP, name
        assert low <= entry.address < low + 32
        for address, what in mine:
            if what >= EXIT:
                leave = leave_of(low, words, (address - low) // 4)
                assert leave.move != STEP, name
                assert address - 8 <= leave.address <= address
                assert (leave.frame == 0) == (leave.address == address)
