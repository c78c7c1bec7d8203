"""Copies of the host's own kernel elsewhere in RAM: the running one is found all the same."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from inspector.check import run_checks
from inspector.kernel import locate
from inspector.kernel.memory import StoppedMemory
from inspector.symbols import KernelSymbols, open_symbols
from inspector.target.connect import attached
from tests.live.conftest import take_from
from tests.live.machine import Machine
from tests.live.poke import Ram, qmp

pytestmark = pytest.mark.live

# The kernel is told of 768 MiB only: what lies above stays as it is put.
LOADED = 0x7200_0000
SNAPSHOT = 0x7800_0000


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A host whose Image QEMU's loader put into RAM a second time."""
    with Machine.start(scenario="none") as plain:
        image = plain.image
    wrapper = tmp_path_factory.mktemp("qemu") / "qemu-with-decoy"
    loader = f"loader,file={image},addr={LOADED:#x},force-raw=on"
    wrapper.write_text(f'#!/bin/sh\nexec qemu-system-aarch64 "$@" -device {loader}\n')
    wrapper.chmod(0o755)
    with Machine.start(append="mem=768M", options=["--qemu", str(wrapper)]) as found:
        yield found


@pytest.fixture(scope="module")
def symbols(machine: Machine) -> KernelSymbols:
    return open_symbols(image=machine.image)


def candidates(machine: Machine, symbols: KernelSymbols) -> list[int]:
    with attached(machine.gdb_socket) as target:
        return locate._image_candidates(StoppedMemory(target.memory), symbols, 2 << 20)


def test_the_loaders_copy_is_not_taken_for_the_kernel(machine: Machine, symbols: KernelSymbols) -> None:
    places = candidates(machine, symbols)
    assert LOADED in places, "the decoy is not there"
    assert len(places) == 2
    capture = take_from(machine, symbols)
    assert capture.host.image_pa[0] != LOADED
    assert capture.vms
    assert run_checks(capture) == []


@pytest.mark.parametrize("own_place", [False, True], ids=["as-it-was", "claiming-its-own-place"])
def test_a_copy_of_the_running_kernel_is_not_taken_for_it(
    machine: Machine, symbols: KernelSymbols, own_place: bool
) -> None:
    """What a guest of the same build leaves in RAM, at its worst: all of a running image, its page tables included.

    With ``own_place`` its kimage_voffset says that it runs, at the same slide, from where it lies; only the page tables
    tell the two apart.  The decoys are tried first.
    """
    real = take_from(machine, symbols).host
    with qmp(machine) as client:
        client("stop")
        ram = Ram(machine, client)
        start, end = real.image_pa
        for at in range(start, end, 1 << 20):
            ram.write(SNAPSHOT + at - start, ram.read(at, min(1 << 20, end - at)))
        if own_place:
            voffset = symbols.link_text + real.kaslr_slide - SNAPSHOT
            at = SNAPSHOT + symbols.require("kimage_voffset") - symbols.link_text
            ram.write(at, (voffset & (1 << 64) - 1).to_bytes(8, "little"))
        ram.close()
        client("cont")
    places = candidates(machine, symbols)
    assert SNAPSHOT in places
    with attached(machine.gdb_socket) as target:
        memory = StoppedMemory(target.memory)
        space = locate._believed(memory, symbols, target.cpus(), sorted(places, reverse=True))
    assert space is not None
    assert (space.image_pa, space.slide) == (real.image_pa[0], real.kaslr_slide)


def test_nothing_is_believed_where_only_decoys_are(machine: Machine, symbols: KernelSymbols) -> None:
    with attached(machine.gdb_socket) as target:
        assert locate._believed(StoppedMemory(target.memory), symbols, target.cpus(), [LOADED, SNAPSHOT]) is None


def test_the_root_is_found_without_registers(machine: Machine, symbols: KernelSymbols) -> None:
    """All CPUs of an nVHE host may be in guests: then only the image itself holds the root."""
    real = take_from(machine, symbols).host
    with attached(machine.gdb_socket) as target:
        space = locate._believed(StoppedMemory(target.memory), symbols, [], [real.image_pa[0]])
    assert space is not None
    assert space.slide == real.kaslr_slide
