"""Physical memory: what was planted through QEMU's loader comes back byte for byte, whichever way it is read."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from inspector.findings import BadInput, ExitCode
from inspector.target.api import RamRange, Target, UnreadableMemory
from inspector.target.connect import open_target
from inspector.target.gdb_memory import MiMemory, PhysicalMode
from inspector.target.process_memory import ProcessDenied, ProcessMemory, ProcessReader
from inspector.target.ranges import RamMap
from tests.target.conftest import Qemu, Starter, eventually, qemu_starter

pytestmark = pytest.mark.live

SIZE = 3 << 20
# Low RAM is two backends that meet at 0x44000000: the pattern lies across that border.
BORDER = 0x44000000
PATTERN_AT = BORDER - (1 << 20) - 0x123
PATTERN = random.Random(2).randbytes(SIZE)
LAST_AT = 0x4FFFFFF0
LAST = bytes(range(0xF0, 0x100))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Qemu]:
    folder = tmp_path_factory.mktemp("planted")
    (folder / "pattern").write_bytes(PATTERN)
    (folder / "last").write_bytes(LAST)
    with qemu_starter(folder) as start:
        yield start(
            None,
            *("-object", "memory-backend-ram,id=low,size=64M", "-object", "memory-backend-ram,id=high,size=192M"),
            *("-numa", "node,memdev=low", "-numa", "node,memdev=high"),
            *("-device", f"loader,file={folder}/pattern,addr={PATTERN_AT:#x},force-raw=on"),
            *("-device", f"loader,file={folder}/last,addr={LAST_AT:#x},force-raw=on"),
        )


@pytest.fixture(params=["process", "gdb"])
def target(planted: Qemu, request: pytest.FixtureRequest) -> Iterator[Target]:
    with open_target(planted.stub, memory=request.param) as machine:
        assert machine.memory.name == request.param
        assert machine.memory.why_not_faster is None
        yield machine


def test_ram_ranges(target: Target) -> None:
    assert list(target.memory.ram) == [
        RamRange(0x40000000, 0x44000000, "low"),
        RamRange(0x44000000, 0x50000000, "high"),
    ]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 0x7FF, 0x800, 0x801, 4096, 65536, SIZE])
def test_a_read_of_any_size(target: Target, size: int) -> None:
    assert target.memory.read(PATTERN_AT, size) == PATTERN[:size]


def test_a_read_across_two_backends(target: Target) -> None:
    offset = BORDER - PATTERN_AT
    assert target.memory.read(BORDER - 5, 10) == PATTERN[offset - 5 : offset + 5]
    assert target.memory.read_many([(BORDER - 5, 10)]) == [PATTERN[offset - 5 : offset + 5]]


def test_the_last_bytes_of_ram(target: Target) -> None:
    assert target.memory.read(LAST_AT, 16) == LAST
    assert target.memory.read(0x4FFFFFFF, 1) == LAST[-1:]


def test_many_reads_in_one(target: Target) -> None:
    """More than IOV_MAX (1024), odd sizes, overlaps, any order; unreadable ones spoil only themselves."""
    choice = random.Random(3)
    requests = []
    for _ in range(3000):
        at = choice.randrange(SIZE)
        requests.append((PATTERN_AT + at, choice.randrange(min(600, SIZE - at) + 1)))
    requests[7] = (0, 4096)
    requests[1500] = (0x4FFFFFFF, 2)
    requests[2999] = (1 << 60, 8)
    expected = [
        PATTERN[pa - PATTERN_AT :][:size] if pa >= PATTERN_AT and pa + size <= PATTERN_AT + SIZE else None
        for pa, size in requests
    ]
    assert expected.count(None) == 3
    assert target.memory.read_many(requests) == expected
    assert target.memory.read_many([]) == []


def test_one_large_read_among_many(target: Target) -> None:
    """Larger than one batch of the gdb backend."""
    first, large, last = target.memory.read_many([(PATTERN_AT, 16), (PATTERN_AT, 9 << 20), (PATTERN_AT + 16, 16)])
    assert (first, last) == (PATTERN[:16], PATTERN[16:32])
    assert large is not None
    assert large[:SIZE] == PATTERN
    assert large[SIZE:] == bytes((9 << 20) - SIZE)


@pytest.mark.parametrize(
    ("pa", "size"),
    [(0, 8), (0x09000000, 4), (0x3FFFFFFF, 2), (0x50000000, 1), (0x4FFFFFFF, 2), (1 << 52, 8), (1 << 63, 8), (-8, 8)],
)
def test_what_is_no_ram_is_unreadable(target: Target, pa: int, size: int) -> None:
    """Flash and device registers too: reading a device can change it."""
    with pytest.raises(UnreadableMemory) as caught:
        target.memory.read(pa, size)
    assert (caught.value.pa, caught.value.size) == (pa, size)
    assert target.memory.read_many([(pa, size), (PATTERN_AT, 4)]) == [None, PATTERN[:4]]


def test_both_ways_give_what_qemus_own_monitor_shows(planted: Qemu, target: Target) -> None:
    shown = re.findall(r"0x([0-9a-f]{16})", planted.monitor("xp /512gx 0x44000000"))
    expected = b"".join(int(word, 16).to_bytes(8, "little") for word in shown)
    assert target.memory.read(0x44000000, 4096) == expected


def test_memory_written_while_running_is_seen_after_the_next_stop(start_qemu: Starter) -> None:
    """No cache of ours or gdb's hands out old bytes."""
    qemu = start_qemu()
    for backend in ("process", "gdb"):
        with open_target(qemu.stub, memory=backend) as machine:
            seen = set()
            for _ in range(4):
                seen.add(machine.memory.read(0x40200000, 8))
                assert machine.memory.read_many([(0x40200000, 8)]) == [machine.memory.read(0x40200000, 8)]
                machine.resume()
                eventually(qemu.counts, "the machine counts on")
                machine.stop()
            assert len(seen) == 4


def test_mi_commands_alone_read_the_same(planted: Qemu) -> None:
    """The way of a gdb that was built without Python."""
    with open_target(planted.stub, memory="gdb") as machine:
        plain = MiMemory(machine.session, machine.memory.ram)
        assert plain.read_many([(PATTERN_AT, 4096), (0, 4), (BORDER, 8)]) == [
            PATTERN[:4096],
            None,
            PATTERN[BORDER - PATTERN_AT :][:8],
        ]


def test_proc_mem_reads_the_same_where_process_vm_readv_is_forbidden(planted: Qemu) -> None:
    with open_target(planted.stub, memory="process") as machine:
        assert isinstance(machine.memory, ProcessMemory)
        reader = machine.memory._reader
        reader._readv = None
        assert machine.memory.read(BORDER - 100, 200) == PATTERN[BORDER - PATTERN_AT - 100 :][:200]
        assert reader.read([(8, 8)]) is None


def test_an_unmapped_address_of_the_process_is_none_not_an_exception(planted: Qemu) -> None:
    reader = ProcessReader(planted.process.pid)
    assert reader.read([(8, 8)]) is None
    reader._readv = None
    assert reader.read([(8, 8)]) is None
    reader.close()


def test_a_process_that_may_not_be_read_is_explained(planted: Qemu) -> None:
    """A user without rights on the process: `nobody` when we are root, and process 1 when we are not."""
    script = (
        "import os, sys\n"
        "from inspector.target.process_memory import ProcessReader, ProcessDenied\n"
        "pid = int(sys.argv[1]) if os.geteuid() == 0 else 1\n"
        "if os.geteuid() == 0:\n    os.setgid(65534); os.setuid(65534)\n"
        "for forbidden in (False, True):\n"
        "    reader = ProcessReader(pid)\n"
        "    if forbidden:\n        reader._readv = None\n"
        "    try:\n        reader.read([(4096, 8)])\n"
        "    except ProcessDenied as error:\n        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(planted.process.pid)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("belongs to another user: run as that user or as root") == 2


@contextmanager
def forwarded(stub: str) -> Iterator[str]:
    """A forwarder in this process, as ``ssh -L`` or a container's proxy is one: the pid at its end is not QEMU's."""
    listener = socket.create_server(("127.0.0.1", 0))
    sockets: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            far = socket.socket(socket.AF_UNIX)
            far.connect(stub)
            sockets.extend((near, far))
            threading.Thread(target=pump, args=(near, far), daemon=True).start()
            threading.Thread(target=pump, args=(far, near), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for one in sockets:
            one.close()


def test_behind_a_forwarder_the_process_is_not_trusted(planted: Qemu) -> None:
    with forwarded(planted.stub) as address:
        with open_target(address) as machine:
            assert machine.memory.name == "gdb"
            assert machine.memory.why_not_faster is not None
            assert f"process {os.getpid()}" in machine.memory.why_not_faster
            assert machine.memory.read_many([(PATTERN_AT, SIZE)]) == [PATTERN]
            assert machine.kernel_file is None
        with pytest.raises(BadInput, match=r"not QEMU itself.*use --memory gdb") as caught:
            open_target(address, memory="process")
    assert caught.value.exit_code == ExitCode.USAGE
    planted.qmp("cont")
    assert planted.physical_mode() == "0"


def test_another_process_with_the_same_mappings_is_found_out(planted: Qemu, start_qemu: Starter) -> None:
    """The pid of another QEMU: either the addresses are not mapped there, or the bytes differ."""
    from inspector.target.connect import _process_memory

    other = start_qemu()
    with open_target(planted.stub, memory="gdb") as machine, pytest.raises(ProcessDenied):
        _process_memory(other.process.pid, machine.session, machine.memory.ram)


def test_physical_mode_is_what_makes_the_reads_physical(start_qemu: Starter) -> None:
    """With an MMU on and no mapping, the same MI read fails outside physical mode: the mode is really in use."""
    qemu = start_qemu(
        # EL2 with its MMU on and empty tables: every virtual address faults from here on.
        "    .globl _start\n_start:\n    ldr x0, =0x42000000\n    msr ttbr0_el2, x0\n"
        "    ldr x0, =0x80853510\n    msr tcr_el2, x0\n    isb\n    mrs x0, sctlr_el2\n    orr x0, x0, #1\n"
        "    msr sctlr_el2, x0\n    isb\n1:  b 1b\n",
    )
    with open_target(qemu.stub, memory="gdb") as machine:
        assert machine.cpus()[0].registers["SCTLR_EL2"] & 1
        assert machine.memory.read(0x40100000, 4) != bytes(4)
        PhysicalMode(machine.session).set(0)
        with pytest.raises(UnreadableMemory):
            machine.memory.read(0x40100000, 4)
        assert machine.memory.read_many([(0x40100000, 4), (0x40100004, 4)]) == [None, None]


def test_ranges_split_and_hold() -> None:
    ram = RamMap([RamRange(0x2000, 0x3000, "b"), RamRange(0x1000, 0x2000, "a"), RamRange(0x8000, 0x9000, "c")])
    assert ram.split(0x1FF8, 16) == [(0, 0x1FF8, 8), (1, 0x2000, 8)]
    assert ram.split(0x2FF8, 16) is None
    assert ram.split(0x8000, 0x1000) == [(2, 0x8000, 0x1000)]
    assert ram.holds(0x1000, 0x2000)
    assert not ram.holds(0xFFF, 2)
    assert not RamMap([]).holds(0, 1)
