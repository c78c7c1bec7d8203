"""How KVM runs, told at whatever instant: a process of the host's runs with another root than the kernel's (KPTI)."""

from __future__ import annotations

import contextlib
import random
import threading

import pytest

from inspector.codec import table_address
from inspector.kernel.host import find_kernel
from inspector.kernel.memory import StoppedMemory
from inspector.kernel.mode import kvm_mode
from inspector.snapshot import Mode
from inspector.symbols import open_symbols
from inspector.target.connect import attached
from tests.live.machine import Machine

pytestmark = pytest.mark.live


def work(machine: Machine) -> None:
    with contextlib.suppress(EOFError):  # the machine is ended before it is done
        machine.command("run random seed=3 actions=4000")


def test_a_host_in_vhe_is_one_while_its_processes_run(rng: random.Random) -> None:
    """cortex-a76 has no ID_AA64PFR0_EL1.CSV3, so that the kernel unmaps itself: TTBR1_EL2 is the trampoline's then."""
    elsewhere, seen = 0, set[Mode]()
    with Machine.start(cpu="cortex-a76", smp=1, scenario="none") as machine:
        symbols = open_symbols(image=machine.image)
        with attached(machine.gdb_socket) as target:
            target.resume()
            busy = threading.Thread(target=work, args=(machine,))
            busy.start()
            while busy.is_alive() and elsewhere < 5:
                busy.join(rng.uniform(0, 0.05))
                target.stop()
                cpus = target.cpus()
                kernel = find_kernel(StoppedMemory(target.memory), symbols, cpus, lambda text: None)
                page = kernel.space.geometry.granule
                root = table_address(cpus[0].registers["TTBR1_EL2"]) & -page
                elsewhere += root != kernel.space.root_pa
                seen.add(kvm_mode(kernel, cpus))
                target.resume()
        machine.kill()
        busy.join()
    assert elsewhere == 5
    assert seen == {Mode.VHE}
