"""A stub that lies, drips or never ends costs the user one short sentence, in a time that is stated.

Each is QEMU's but for one thing (`tests.target.liar`).  That a test ends at all is what it shows: the deadlines are
those of the call, a second for a question and three for attaching, and pytest's own comes much later.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from inspector.findings import TargetLost
from inspector.target.api import UnreadableMemory
from inspector.target.connect import attached
from tests.target.liar import MTREE, Connection, Liar, Lie, frame, target_xml

pytestmark = [pytest.mark.timeout(60), pytest.mark.processes]


def on(prefix: bytes, act: Callable[[Connection], object]) -> Lie:
    """Lie in answer to packets that begin so."""

    def lie(connection: Connection, packet: bytes) -> bool:
        if not packet.startswith(prefix):
            return False
        act(connection)
        return True

    return lie


def monitor(command: str, act: Callable[[Connection], object]) -> Lie:
    """Lie in answer to a monitor command."""
    return on(b"qRcmd," + command.encode().hex().encode(), act)


def forever(data: bytes, pause: float = 0.0) -> Callable[[Connection], object]:
    """Send ``data`` again and again."""

    def act(connection: Connection) -> None:
        while True:
            connection.raw(data)
            connection.wait(pause)

    return act


def drip(data: bytes) -> Callable[[Connection], object]:
    """A byte every now and then: never silent as long as a deadline."""

    def act(connection: Connection) -> None:
        for at in range(len(data)):
            connection.raw(data[at : at + 1])
            connection.wait(0.3)

    return act


def nothing(connection: Connection) -> None:
    """No answer."""


def slowly(connection: Connection) -> None:
    """One more byte of a description, well before the deadline."""
    connection.wait(0.4)
    connection.send(b"ma")


STOPPED = frame(b"T05thread:p01.01;")
EVIL = "\x1b[31mevil\nline2\x07\u202e"
LONG = MTREE.replace("mach-virt.ram", "a" + " " * 60000 + "b")
MANY = MTREE + "".join(
    f"  {n << 13:016x}-{(n << 13) + 0xFFF:016x} (prio 0, ram): r\n" for n in range(1 << 20, (1 << 20) + 9000)
)


@pytest.mark.parametrize(
    ("lie", "sentence"),
    [
        pytest.param(on(b"", nothing), "does not answer", id="silent"),
        pytest.param(on(b"", drip(frame(b"PacketSize=1000;" * 4))), "does not answer", id="every answer drips"),
        pytest.param(on(b"qSupported", forever(b"+")), "does not answer", id="acknowledges for ever"),
        pytest.param(on(b"qSupported", forever(b"$" + b"a" * 5000)), "without end", id="a packet without end"),
        pytest.param(on(b"qSupported", forever(STOPPED)), "stop replies without end", id="stops for ever"),
        pytest.param(on(b"qqemu", forever(STOPPED, 0.2)), "does not end in time", id="stops now and then for ever"),
        pytest.param(on(b"qSupported", lambda c: c.raw(b"$OK#00")), "wrong checksum", id="wrong checksum"),
        pytest.param(on(b"qXfer", lambda c: c.send(b"m" + b"a" * 0x7F0)), "no end", id="a description without end"),
        pytest.param(on(b"qXfer", lambda c: c.send(b"m")), "no end", id="more to come, and nothing comes"),
        pytest.param(on(b"qXfer", slowly), "not end in time", id="a slow description"),
        pytest.param(
            on(b"qXfer", lambda c: c.send(b"l" + target_xml().replace(b"aarch64<", EVIL.encode() + b"<"))),
            r"is \\x1b\[31mevil\\nline2\\x07\\u202e, not AArch64",
            id="an architecture that moves the cursor",
        ),
        pytest.param(monitor("info", lambda c: c.send(b"Ozz")), "not hexadecimal", id="output that is not hexadecimal"),
        pytest.param(monitor("info", lambda c: c.send(b"O123")), "not hexadecimal", id="half a byte"),
        pytest.param(monitor("info status", forever(frame(b"O" + b"41" * 500))), "no end", id="endless output"),
        pytest.param(monitor("info status", forever(frame(b"O41"), 0.2)), "not end in time", id="endless slow output"),
        pytest.param(
            monitor("info mtree", forever(frame(b"O" + b"41" * 500))),
            "'monitor info mtree -f' did not come in time|printed more than",
            id="endless output behind gdb",
        ),
        pytest.param(
            monitor("info mtree", nothing), "'monitor info mtree -f' did not come in time", id="silence behind gdb"
        ),
        pytest.param(
            monitor("info mtree", lambda c: c.print(MTREE.replace("00000000401fffff", "f" * 16))),
            "RAM that no machine has.*beyond 52 bits",
            id="RAM to the end of 64 bits",
        ),
        pytest.param(
            monitor("info mtree", lambda c: c.print(MTREE.replace("00000000401fffff", "0" * 12 + "0fff"))),
            "RAM that no machine has.*backwards",
            id="RAM that ends before it begins",
        ),
        pytest.param(monitor("info mtree", lambda c: c.print(MANY)), "in time|ranges", id="RAM in thousands of pieces"),
        pytest.param(on(b"g", lambda c: c.send(b"00" * 100000)), "too long", id="too many registers"),
        pytest.param(on(b"g", nothing), "in time|Remote replied|gdb cannot|timed out", id="no registers"),
        pytest.param(on(b"qqemu", lambda c: c.send(b"7")), "no physical memory mode", id="a mode that does not exist"),
        pytest.param(on(b"m", lambda c: c.send(b"E14")), "", id="unreadable memory"),
        pytest.param(on(b"qfThreadInfo", lambda c: c.send(b"E01")), "", id="no threads"),
        pytest.param(monitor("info version", lambda c: c.print("7." + "9" * 5000)), "", id="version of 5,000 digits"),
        pytest.param(monitor("info version", lambda c: c.print("1__2._")), "", id="version with underscores"),
        pytest.param(monitor("info version", lambda c: c.print("\u0661.\u0662")), "", id="version in other digits"),
    ],
)
def test_one_short_sentence(lie: Lie, sentence: str) -> None:
    with Liar(lie) as stub:
        if not sentence:
            with attached(stub.address, memory="gdb", timeout=1.0):
                return
        with pytest.raises(TargetLost, match=sentence) as error, attached(stub.address, memory="gdb", timeout=1.0):
            pass
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


def memory(act: Callable[[Connection, int], object]) -> Lie:
    """Lie in answer to a read of so many bytes of memory, once gdb has attached (it reads a little for itself)."""

    def lie(connection: Connection, packet: bytes) -> bool:
        if not packet.startswith(b"m"):
            return False
        act(connection, int(packet.partition(b",")[2], 16))
        return True

    return lie


PAGES = [(0x4000_0000 + at, 0x1000) for at in range(0, 1 << 20, 0x1000)]


def late(connection: Connection, size: int) -> None:
    connection.wait(0.4)
    connection.send(b"00" * size)


def cut(connection: Connection, size: int) -> None:
    connection.raw(b"$0000")
    connection.close()


def hexed(data: bytes) -> bytes:
    return data.hex().encode()


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(memory(lambda c, size: c.send(b"00" * (size // 2))), id="too short"),
        pytest.param(memory(lambda c, size: c.send(b"0" * (2 * size - 1))), id="half a byte"),
        pytest.param(memory(lambda c, size: c.send(b"zz" * size)), id="not hexadecimal"),
        pytest.param(memory(lambda c, size: c.send(b"\xff\x00" * size)), id="not text"),
        pytest.param(memory(lambda c, size: c.send(b"")), id="not supported"),
        pytest.param(memory(lambda c, size: c.send(b"OK")), id="a word"),
        pytest.param(memory(lambda c, size: c.send(b"E.\x1b[31mno\nway\x07")), id="an error that moves the cursor"),
        pytest.param(memory(lambda c, size: None), id="silent"),
        pytest.param(memory(lambda c, size: drip(frame(b"00" * size))(c)), id="dripping"),
        pytest.param(memory(late), id="slow"),
        pytest.param(memory(cut), id="cut off"),
        pytest.param(memory(lambda c, size: forever(STOPPED)(c)), id="stop replies without end"),
        pytest.param(memory(lambda c, size: c.raw(b"$" + b"00" * size + b"#00")), id="wrong checksum"),
    ],
)
def test_memory_that_lies(lie: Lie) -> None:
    """A megabyte of it, page by page and at once: the question ends in time, and the way out does too."""
    with (
        Liar(lie) as stub,
        pytest.raises((TargetLost, UnreadableMemory)) as error,
        attached(stub.address, memory="gdb", timeout=1.0) as machine,
    ):
        assert set(machine.memory.read_many(PAGES)) == {None}
        machine.memory.read(0x4000_0000, 1 << 20)
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


def test_more_memory_than_was_asked_for() -> None:
    """gdb's own command takes what it asked for and leaves the rest; our script takes none."""
    with (
        Liar(memory(lambda c, size: c.send(b"00" * (size * 2)))) as stub,
        attached(stub.address, memory="gdb", timeout=5.0) as machine,
    ):
        assert set(machine.memory.read_many(PAGES)) == {None}
        assert machine.memory.read(0x4000_0000, 4096) == bytes(4096)


def test_memory_that_is_random_is_memory() -> None:
    with (
        Liar(memory(lambda c, size: c.send(hexed(os.urandom(size))))) as stub,
        attached(stub.address, memory="gdb", timeout=5.0) as machine,
    ):
        assert len(machine.memory.read(0x4000_0000, 1 << 20)) == 1 << 20


def threads_without_end(connection: Connection) -> None:
    connection.threads += 1
    connection.send(b"mp01.%x" % (connection.threads + 1))


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(on(b"qsThreadInfo", threads_without_end), id="threads without end"),
        pytest.param(on(b"qsThreadInfo", lambda c: c.send(b"mp01.01")), id="the same thread again and again"),
        pytest.param(on(b"qfThreadInfo", lambda c: c.send(b"m" + b"p01.7," * 300 + b"p01.8")), id="one many times"),
        pytest.param(
            on(b"qfThreadInfo", lambda c: c.send(b"m" + b",".join(b"p01.%x" % n for n in range(1, 200)))), id="many"
        ),
        pytest.param(on(b"qThreadExtraInfo", lambda c: c.send(hexed(b"CPU#" + b"9" * 900))), id="number of 900 digits"),
        pytest.param(on(b"qThreadExtraInfo", nothing), id="no names"),
    ],
)
def test_threads_that_lie(lie: Lie) -> None:
    """They are CPUs, or a sentence says why not."""
    with Liar(lie) as stub:
        try:
            with attached(stub.address, memory="gdb", timeout=1.0) as machine:
                machine.cpus()
        except TargetLost as error:
            assert len(str(error)) < 500
            assert str(error).isprintable()


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param(on(b"D", nothing), id="silent"),
        pytest.param(on(b"D", lambda c: c.send(b"E01")), id="refused"),
        pytest.param(on(b"D", lambda c: c.send(b"D" * 3000)), id="nonsense"),
        pytest.param(on(b"D", forever(STOPPED)), id="stop replies without end"),
        pytest.param(on(b"Qqemu.PhyMemMode:0", nothing), id="the mode is not put back"),
    ],
)
def test_leaving_is_not_answered(lie: Lie) -> None:
    """What was asked has its answer; the way out ends all the same."""
    with Liar(lie) as stub, attached(stub.address, memory="gdb", timeout=1.0) as machine:
        assert machine.memory.read(0x4010_0000, 16) == bytes(16)


def test_a_name_with_thousands_of_spaces_is_read_at_once() -> None:
    """A pattern that tried each of them as the end took a minute."""
    with (
        Liar(monitor("info mtree", lambda c: c.print(LONG))) as stub,
        attached(stub.address, memory="gdb", timeout=5.0) as machine,
    ):
        assert [one.name for one in machine.memory.ram] == ["a" + " " * 60000 + "b"]


def test_the_stub_itself_is_good() -> None:
    with Liar(lambda connection, packet: False) as stub, attached(stub.address, memory="gdb", timeout=5.0) as machine:
        assert machine.memory.read(0x4010_0000, 16) == bytes(16)
        assert machine.cpus()[0].registers["HCR_EL2"] == 1 << 31
