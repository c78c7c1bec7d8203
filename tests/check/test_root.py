"""S1, S2: roots and VTCR_EL2, in memory and in the CPUs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from inspector.check import run_checks
from inspector.codec import Geometry
from inspector.findings import Severity
from inspector.snapshot import CpuState, Mmu, MmuKind, Mode, Running
from tests.check.build import PAGE, TRAITS_61, TRAITS_510, VTCR, World, good_world
from tests.check.judge import ERROR, NOTE, at, only, silent, verdict


def world_with(guest: int = 0, **mmu: Any) -> World:
    world = good_world()
    world.guests[guest].mmu_changes.update(mmu)
    return world


# S1


def test_two_records_of_the_root_disagree() -> None:
    world = good_world()
    root = world.guests[1].root
    world.guests[1].mmu_changes["pgd_pa"] = root + 0x10_0000
    finding = only(world, "S1")
    at(finding, vm="vm1", regime="stage-2 VMID 2")
    assert f"{root + 0x10_0000:#x}" in finding.expected and f"{root:#x}" in finding.actual


def test_a_root_below_its_own_alignment() -> None:
    world = World()
    world.new_table()  # so that the two root pages start at an odd page
    guest = world.guest(vmid=1)
    low = world.new_table()
    world.pages[low + PAGE] = [0] * 512
    if low % (2 * PAGE) == 0:
        low += PAGE
        world.pages[low + PAGE] = [0] * 512
    guest.root = low
    finding = only(world, "S1")
    at(finding, vm="vm0", table_pa=low)
    assert "aligned to 0x2000" in finding.expected


def test_a_root_that_is_no_ram() -> None:
    world = good_world()
    world.host_changes["ram"] = ((0x4800_1000, 0x2_4000_0000),)
    findings = [f for f in verdict(world) if f.check == "S1"]
    assert len(findings) == 1
    at(findings[0], vm="vm0", table_pa=0x4800_0000, level=1)


@pytest.mark.parametrize("state", ["free", "slab", "reserved"])
def test_a_root_page_that_is_not_allocated(state: str) -> None:
    world = good_world()
    world.states[world.guests[1].root + 2 * PAGE] = state
    finding = only(world, "S1")
    at(finding, vm="vm1", table_pa=world.guests[1].root + 2 * PAGE, level=2)
    assert state in finding.actual


def cpu(index: int, vttbr: int, vtcr: int, *, live: bool = True) -> CpuState:
    return CpuState(index, {"VTTBR_EL2": vttbr, "VTCR_EL2": vtcr}, Running.GUEST if live else Running.HOST, None, live)


def test_a_cpu_on_the_table_of_another_vm_than_its_vcpus() -> None:
    world = good_world()
    world.cpus[0] = cpu(0, 1 << 48 | world.guests[1].root, VTCR[40])
    finding = only(world, "S1")
    at(finding, vm="vm0", regime="stage-2 VMID 1")
    assert "CPU 0" in finding.actual


def test_a_cpu_on_a_table_that_no_vm_has() -> None:
    world = good_world()
    world.cpus[1] = cpu(1, 9 << 48 | 0x7777_0000, VTCR[40])
    finding = only(world, "S1")
    at(finding, vm=None, table_pa=0x7777_0000)


def test_a_stale_vttbr_is_not_judged() -> None:
    world = good_world()
    world.cpus[1] = cpu(1, 9 << 48 | 0x7777_0000, 0, live=False)
    silent(world)


def test_the_hosts_own_stage_2_under_protected_mode_is_not_judged() -> None:
    world = good_world(TRAITS_61)
    world.host_changes["mode"] = Mode.PROTECTED
    world.cpus[1] = cpu(1, 0x7777_0000, 0x8002_3590)
    silent(world)


def test_a_root_above_48_bits_is_recognised_in_vttbr() -> None:
    """DDI 0487 VTTBR_EL2: with 52-bit addresses [5:2] hold PA[51:48]."""
    world = World()
    guest = world.guest(vmid=1)
    high = 0xF_0000_4000_2000
    for number in range(2):
        world.pages[high + number * PAGE] = world.pages.pop(guest.root + number * PAGE)
    guest.root = high
    world.host_changes["ram"] = ((0xF_0000_4000_0000, 0xF_0000_8000_0000),)
    guest.mmu_changes.update(geometry=Geometry(12, 40, 1, 2, 52, True), vtcr=VTCR[40] & ~(7 << 16) | 6 << 16 | 1 << 32)
    world.features.update(lpa2=1, parange=6)
    guest.vcpu(0, loaded_on=0)
    world.cpu("guest", vttbr=1 << 48 | 0x4000_2000 | 0xF << 2 | 1, vtcr=guest.mmu().vtcr)
    silent(world)


def test_a_table_that_cannot_be_read_is_said_and_not_judged() -> None:
    world = world_with(2, unreadable="the hypervisor owns it (kvm-arm.mode=protected)", pgd_phys=0, pgd_pa=None)
    finding = only(world, "S1", NOTE)
    at(finding, vm="vm2")
    assert "hypervisor" in finding.why


def test_a_damaged_record_of_a_table_is_an_error() -> None:
    world = world_with(2, unreadable="not mapped", damaged=True, pgd_phys=0, pgd_pa=None)
    at(only(world, "S1"), vm="vm2")


def test_a_damaged_record_of_a_vm_is_an_error() -> None:
    capture = good_world().capture()
    damaged = replace(capture.vms[1], unreadable="not mapped", mmus=(), memslots=(), vcpus=())
    found = run_checks(replace(capture, vms=(capture.vms[0], damaged, *capture.vms[2:])), only=["S1"])
    assert [(f.severity, f.where.vm) for f in found] == [(Severity.ERROR, damaged.name)]


def test_a_vm_that_has_no_table_yet() -> None:
    world = good_world()
    world.guests[2].mmu_changes.update(pgd_phys=0, pgd_pa=None, vtcr=0, geometry=None, vmid=None, vmid_raw=0)
    silent(world)


# S2


def vtcr(value: int) -> World:
    return world_with(2, vtcr=value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (VTCR[48] + 1, "T0SZ 16"),  # 47 bits; pgt->ia_bits is 48
        (VTCR[48] ^ 3 << 6, "SL0 2"),  # start level 1; pgt->start_level is 0
        (VTCR[48] & ~(3 << 8), "IRGN0 1"),
        (VTCR[48] ^ 1 << 10, "ORGN0 1"),
        (VTCR[48] ^ 1 << 12, "SH0 3"),
        (VTCR[48] | 1 << 14, "TG0"),  # 64K
        (VTCR[48] ^ 1 << 31, "bit 31 set"),
        (VTCR[48] ^ 1 << 19, "VS 1"),
        (VTCR[48] | 3 << 16, "PS"),  # reserved 7
        (VTCR[48] ^ 3 << 16, "PS 5"),  # 6: 52 bits on a CPU with 48
        (VTCR[48] ^ 1 << 16, "PS 5"),  # 4: 44 bits on a CPU with 48
        (VTCR[48] | 1 << 22, "no other bit"),  # HD
        (VTCR[48] | 1 << 33, "no other bit"),  # SL2
        (VTCR[48] | 1 << 32, "DS 0"),  # on CPUs without FEAT_LPA2
    ],
)
def test_a_vtcr_that_kvm_does_not_make(value: int, said: str) -> None:
    findings = verdict(vtcr(value))
    assert {(f.check, f.severity, f.where.vm) for f in findings} == {("S2", ERROR, "vm2")}, findings
    assert any(said in f.expected for f in findings), [f.expected for f in findings]
    assert all(f"{value:#x}" in f.actual or "T0SZ and SL0 aside" in f.expected for f in findings)


def test_vtcr_differs_between_vms() -> None:
    """HA comes from one kernel configuration: all VMs have it or none."""
    finding = only(vtcr(VTCR[48] & ~(1 << 21)), "S2")
    at(finding, vm="vm2")
    assert "vm0" in finding.expected


def test_all_vms_without_ha() -> None:
    world = good_world()
    for guest in world.guests:
        guest.mmu_changes["vtcr"] = VTCR[guest.ia_bits] & ~(1 << 21)
    world.cpus[0] = cpu(0, 1 << 48 | world.guests[0].root, VTCR[40] & ~(1 << 21))
    silent(world)


@pytest.mark.parametrize("traits", [TRAITS_510, {"mm_ops": True, "vmid_struct": True}])
def test_old_kernels_always_set_ha(traits: dict[str, bool]) -> None:
    world = World(traits)
    world.guest(vmid=1)
    silent(world)
    world.guests[0].mmu_changes["vtcr"] = VTCR[40] & ~(1 << 21)
    finding = only(world, "S2")
    assert finding.expected == "HA 1"


def test_a_cpu_with_another_vtcr_than_its_vm() -> None:
    world = good_world()
    world.cpus[0] = cpu(0, 1 << 48 | world.guests[0].root, VTCR[40] - 1)
    finding = only(world, "S2")
    at(finding, vm="vm0")
    assert "CPU 0" in finding.actual


@pytest.mark.parametrize(
    ("value", "ia_bits", "features"),
    [
        (0x1_802E_3558, 40, {"lpa2": 1, "parange": 6}),  # measured: Debian 6.12, -cpu max
        (0x8024_3558, 40, {"vmid16": 0, "parange": 4}),  # measured: 6.1 and 6.12 on cortex-a57
        (0x802A_3558, 40, {"parange": 2}),  # measured: 6.1 on cortex-a76
        (0x800E_3558 | 1 << 32, 40, {"lpa2": 1, "parange": 6}),  # measured: built without CONFIG_ARM64_HW_AFDBM
    ],
)
def test_values_measured_on_real_kernels(value: int, ia_bits: int, features: dict[str, int]) -> None:
    world = World()
    world.features.update(features)
    guest = world.guest(vmid=1, ia_bits=ia_bits)
    guest.mmu_changes.update(vtcr=value, geometry=Geometry.from_vtcr(value))
    silent(world)


#: RES1, HA, VS, SH0, ORGN0 and IRGN0 as VTCR_EL2_FLAGS has them; TG0 of each granule.
_FLAGS, _TG0 = 0x8028_3500, {12: 0 << 14, 14: 2 << 14, 16: 1 << 14}


def _vtcr_of(shift: int, ia_bits: int, ps: int, levels: int, *, ds: bool = False) -> int:
    """A VTCR_EL2 by hand (DDI 0487 VTCR_EL2): SL0 counts levels from 2 with 4K pages, from 1 with the others."""
    sl0 = levels - 2 if shift == 12 else levels - 1
    return _FLAGS | _TG0[shift] | ps << 16 | sl0 << 6 | 64 - ia_bits | int(ds) << 32


@pytest.mark.parametrize(
    ("shift", "ia_bits", "ps", "levels", "lpa2", "parange", "wrong"),
    [
        # kvm_set_ipa_limit does not clip with 64K pages: 52 bits of IPA, PS by kvm_get_parange_max: 48 without
        # CONFIG_ARM64_PA_BITS_52, 52 with it (6.12 and 7.3; 6.1 by ID_AA64MMFR0_EL1_PARANGE_MAX).
        (16, 52, 5, 3, False, 6, None),
        (16, 52, 6, 3, False, 6, None),
        (16, 48, 5, 3, False, 5, None),
        (16, 52, 5, 3, False, 5, "an IPA size of 32 to 48 bits"),
        (16, 48, 4, 3, False, 6, "PS 5 or 6"),
        (16, 48, 4, 3, False, 5, "PS 5"),
        # 4K and 16K pages without LPA2 are clipped to 48 bits, both of them.
        (12, 48, 5, 4, False, 6, None),
        (12, 48, 6, 4, False, 6, "PS 5"),
        (14, 48, 5, 3, False, 6, None),
        (14, 52, 5, 4, False, 6, "an IPA size of 32 to 48 bits"),
        # With LPA2 (kvm_lpa2_is_enabled) neither is.
        (12, 52, 6, 4, True, 6, None),
        (12, 48, 5, 4, True, 6, "PS 6"),
        # A CPU with less limits both; kvm_init_ipa_range refuses fewer than ARM64_MIN_PARANGE_BITS, 32.
        (12, 40, 2, 3, False, 2, None),
        (12, 44, 2, 4, False, 2, "an IPA size of 32 to 40 bits"),
        (12, 32, 5, 2, False, 5, None),
        (12, 31, 5, 2, False, 5, "an IPA size of 32 to 48 bits"),
    ],
)
def test_how_large_addresses_may_be(
    shift: int, ia_bits: int, ps: int, levels: int, lpa2: bool, parange: int, wrong: str | None
) -> None:
    world = World()
    world.features.update(parange=parange, lpa2=int(lpa2))
    world.host_changes["page_size"] = 1 << shift
    guest = world.guest(vmid=1)
    value = _vtcr_of(shift, ia_bits, ps, levels, ds=lpa2)
    guest.mmu_changes.update(
        vtcr=value, ia_bits=ia_bits, start_level=4 - levels, pgd_phys=0, pgd_pa=guest.root, geometry=None
    )
    found = [(f.severity, f.expected) for f in run_checks(world.capture(), only=["S2"])]
    assert found == ([] if wrong is None else [(Severity.ERROR, wrong)])


def test_a_shadow_table_is_held_to_the_same_vtcr() -> None:
    world = good_world()
    own: Mmu = world.guests[0].mmu()
    root = world.new_table(2)
    shadow = Mmu(
        **{**own.__dict__, "address": own.address + 0x1000, "kind": MmuKind.SHADOW, "vmid": 9, "vmid_raw": 0x1_0009},
    )
    shadow = Mmu(**{**shadow.__dict__, "pgd_phys": root, "pgd_pa": root})
    world.guests[0].more_mmus.append(shadow)
    silent(world)
    world.guests[0].more_mmus[0] = Mmu(**{**shadow.__dict__, "vtcr": shadow.vtcr | 1 << 22})
    findings = verdict(world)
    assert {f.check for f in findings} == {"S2"} and {f.where.regime for f in findings} == {"shadow stage-2 VMID 9"}
