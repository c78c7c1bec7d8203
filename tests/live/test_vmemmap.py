"""Where ``struct page`` lies: ways that share nothing but the kernel they ask are each other's oracle."""

from __future__ import annotations

import pytest

from inspector.kernel.host import find_kernel
from inspector.kernel.memory import StoppedMemory
from inspector.kernel.vmemmap import METHODS, find_vmemmap
from inspector.target.connect import open_target
from tests.live.conftest import Booted

pytestmark = pytest.mark.live


def release_of(booted: Booted) -> tuple[int, ...]:
    assert booted.truth.boot is not None and booted.truth.boot.release is not None
    return tuple(int(part) for part in booted.truth.boot.release.split(".")[:2])


def test_every_way_gives_the_same_place(booted: Booted) -> None:
    """6.12 and later have all four; without KALLSYMS_ALL (5.10, 6.1) an Image does not name the vmalloc areas."""
    target = open_target(booted.machine.gdb_socket)
    try:
        target.stop()
        kernel = find_kernel(StoppedMemory(target.memory), booted.symbols, target.cpus(), lambda _: None)
        found = {name: method(kernel) for name, method in METHODS.items()}
        place = find_vmemmap(kernel)
    finally:
        target.close()
    silent = {"the vmalloc areas"} if booted.symbols.address("vmap_nodes") is None else set()
    if release_of(booted) < (6, 1):
        silent.add("VMCOREINFO")  # which names VMEMMAP_START from 6.1 on
    assert found == {name: set() if name in silent else {place} for name in METHODS}
