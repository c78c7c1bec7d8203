"""Where the probe looks, in the kernels that there are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from inspector.symbols import KernelSymbols, open_symbols
from inspector.trace.functions import INVALIDATING, NEEDED
from inspector.trace.plan import EXIT, linear_map, make_plan, of_header
from tests.conftest import kernel_labels

LABELS = [label for label in kernel_labels() if label != "5.10"]


@pytest.fixture(scope="module", params=LABELS)
def symbols(request: pytest.FixtureRequest) -> KernelSymbols:
    return open_symbols(image=Path(os.environ["INSPECTOR_KERNELS"]) / request.param / "vmlinuz")


def test_a_plan(symbols: KernelSymbols) -> None:
    """Each followed function's entry, at least one return of each that ends, and nothing that is no function's."""
    plan = make_plan(symbols)
    assert set(NEEDED) <= set(plan.functions)
    numbers = [number for _, number, _ in plan.probes]
    for number, name in enumerate(plan.functions):
        assert numbers.count(number) == 1
        (address,) = (address for address, each, _ in plan.probes if each == number)
        assert symbols.nearest(address) is not None
        assert address == symbols.address(name)
    for address, number, _ in plan.probes:
        if number >= EXIT:
            low = symbols.require(plan.functions[number - EXIT])
            assert low < address < low + (1 << 14)
    assert of_header(json.loads(json.dumps(plan.header()))) == plan


def test_what_a_fault_is_for_and_how_el2_begins(symbols: KernelSymbols) -> None:
    """TLBI as the disassembled ``___kvm_hyp_init`` of each has them; dc0dddb1d66d came with 6.12."""
    plan = make_plan(symbols)
    (told,) = (line for line in plan.config().splitlines() if line.startswith("o "))
    assert told == f"o {symbols.require('kvm_handle_guest_abort'):x} {plan.syndrome:x}"
    assert 0 < plan.syndrome < symbols.sizeof("kvm_vcpu")
    before = plan.release.startswith("6.1.")
    assert plan.ranges is not before
    assert plan.initialising == ("alle2", "vmalls12e1" if before else "alle1")


def test_the_walkers_are_all_of_the_file(symbols: KernelSymbols) -> None:
    """Every function of pgtable.c that can be told by its name is in the stretch, and no other file's is."""
    low, high = make_plan(symbols).walkers
    for name in ("stage2_map_walker", "stage2_attr_walker", "stage2_unmap_walker", "stage2_free_walker"):
        assert low <= symbols.require(name) < high, name
    for name in INVALIDATING[:3:2]:
        assert not low <= symbols.require(name) < high
    assert high - low < 1 << 14


def test_stores_with_release_are_there(symbols: KernelSymbols) -> None:
    plan = make_plan(symbols)
    assert plan.release_stores
    if plan.shared:
        assert plan.compare_and_swaps


def test_what_invalidates_at_el2_is_there_and_where_a_boot_begins(symbols: KernelSymbols) -> None:
    plan = make_plan(symbols)
    flush = symbols.require("__kvm_nvhe___kvm_tlb_flush_vmid_ipa")
    assert any(low <= flush < high for low, high in plan.hyp)
    assert not any(low <= flush < high for low, high in plan.invalidating)
    assert plan.vectors & 0x7FF == 0, "VBAR_EL2[10:0] are RES0"
    assert plan.anchor[0] == symbols.require("__primary_switched")
    assert any(word & 0x9F000000 == 0x90000000 for word in plan.anchor[1:]), (
        "an ADRP, which tells one place from others"
    )


@pytest.mark.parametrize(
    ("link_text", "high"),
    [
        (0xFFFF800008000000, 0xFFFF800000000000),  # 4K pages, 48 bits
        (0xFFFF800080000000, 0xFFFF800000000000),
        (0xFFFFC00080000000, 0xFFFFC00000000000),  # 16K pages, 47 bits
    ],
)
def test_the_linear_map(link_text: int, high: int) -> None:
    assert linear_map(link_text) == (0xFFF0000000000000, high)


def test_every_function_that_writes_vttbr_is_known(symbols: KernelSymbols) -> None:
    """Found by their code; by name in VHE: what runs a guest, what switches for a flush, and no AT instruction's."""
    plan = make_plan(symbols)
    found = {symbols.nearest(low) or ("", 0) for low, high in plan.contexts if high - low == 4}
    names = {name for name, _ in found}
    runs = {"__kvm_vcpu_run_vhe", "kvm_vcpu_load_vhe", "__kvm_vcpu_run"}
    switches = {"enter_vmid_context", "__tlb_switch_to_guest", "__kvm_tlb_flush_vmid"}
    assert names & runs
    assert names & switches
    assert any(name.startswith("__kvm_nvhe_") and name.endswith("kvm_vcpu_run") for name in names)
    assert not [name for name in names if name.startswith("__kvm_at_")]
