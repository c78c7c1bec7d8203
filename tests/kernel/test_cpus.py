"""What a CPU was doing, and whether its VTTBR_EL2 is in force (DDI 0487 D24.2 HCR_EL2; kernel.md 2.4)."""

from __future__ import annotations

import pytest

from inspector.kernel.cpus import cpu_state
from inspector.kernel.features import features
from inspector.target.api import Cpu

VM, TGE, E2H, RW = 1 << 0, 1 << 27, 1 << 34, 1 << 31
EL0, EL1H, EL2H = 0b0000, 0b0101, 0b1001
GUEST_VTTBR = 3 << 48 | 0x4830_4001


def state(cpsr: int, hcr: int, vttbr: int = GUEST_VTTBR) -> tuple[str, bool]:
    found = cpu_state(Cpu(0, {"cpsr": cpsr, "HCR_EL2": hcr, "VTTBR_EL2": vttbr, "pc": 0}), None)
    return found.running, found.vttbr_live


@pytest.mark.parametrize(
    ("cpsr", "hcr", "vttbr", "running", "live"),
    [
        # VHE: the kernel is at EL2 with TGE=1, its user space at EL0 with TGE=1, a guest at EL1/0 with VM=1, TGE=0.
        (EL2H, RW | E2H | TGE, GUEST_VTTBR, "host", False),
        (EL0, RW | E2H | TGE, GUEST_VTTBR, "user", False),
        (EL1H, RW | E2H | VM, GUEST_VTTBR, "guest", True),
        (EL0, RW | E2H | VM, GUEST_VTTBR, "guest", True),
        (EL2H, RW | E2H | VM, GUEST_VTTBR, "world-switch", True),
        # nVHE: the host is at EL1/0 with VM=0; the hypervisor at EL2; a guest as above.
        (EL1H, RW, 0, "host", False),
        (EL0, RW, 0, "user", False),
        (EL2H, RW | VM, GUEST_VTTBR, "hyp", False),
        (EL1H, RW | VM, GUEST_VTTBR, "guest", True),
        # A VMID of 0 is no reason to take a guest for the host: it is a finding (V1).
        (EL1H, RW | VM, 0x5000_0000, "guest", True),
    ],
)
def test_what_runs(cpsr: int, hcr: int, vttbr: int, running: str, live: bool) -> None:
    assert state(cpsr, hcr, vttbr) == (running, live)


@pytest.mark.parametrize("e2h", [0, E2H], ids=["nvhe", "hvhe"])
def test_a_protected_host_runs_under_a_stage_2_of_its_own(e2h: int) -> None:
    """VMID 0 (kernel.md 12.1); with hVHE, E2H is set although the kernel is at EL1."""
    for cpsr, hcr, vttbr, expected in (
        (EL1H, RW | VM | e2h, 0x5000_0000, ("host", True, True)),
        (EL0, RW | VM | e2h, 0x5000_0000, ("user", True, True)),
        (EL1H, RW | VM | e2h, GUEST_VTTBR, ("guest", True, False)),
    ):
        cpu = Cpu(0, {"cpsr": cpsr, "HCR_EL2": hcr, "VTTBR_EL2": vttbr, "pc": 0})
        found = cpu_state(cpu, None, protected=True)
        assert (found.running, found.vttbr_live, found.hosts_own_stage2) == expected


# ID registers of QEMU 7.2's models, by field (DDI 0487 D24.2): qemu.md, "CPU models".
CORTEX_A57 = {"ID_AA64MMFR0_EL1": 0x1124, "ID_AA64MMFR1_EL1": 0, "ID_AA64MMFR2_EL1": 0, "ID_AA64ISAR0_EL1": 0x11120}
VHE16 = {
    "ID_AA64MMFR0_EL1": 0x0000_0300_0000_1126,  # TGRAN4_2 = 3: 52 bits; PARange 6
    "ID_AA64MMFR1_EL1": 0x1000_0122,  # XNX 1, VH 1, VMIDBits 2, HAFDBS 2
    "ID_AA64MMFR2_EL1": 1 << 48 | 1 << 40,  # TTL, FWB
    "ID_AA64ISAR0_EL1": 2 << 56,  # TLB: OS and range
}


def test_features_of_a_cpu_without_any() -> None:
    assert features([Cpu(0, CORTEX_A57)]) == {
        "parange": 4,
        "hafdbs": 0,
        "xnx": 0,
        "nv": 0,
        "vmid16": 0,
        "vhe": 0,
        "fwb": 0,
        "ttl": 0,
        "tlbirange": 0,
        "lpa2": 0,
    }


def test_features_of_a_cpu_with_all() -> None:
    assert features([Cpu(0, VHE16)]) == {
        "parange": 6,
        "hafdbs": 2,
        "xnx": 1,
        "nv": 0,
        "vmid16": 1,
        "vhe": 1,
        "fwb": 1,
        "ttl": 1,
        "tlbirange": 1,
        "lpa2": 1,
    }


def test_features_are_those_of_the_weakest_cpu() -> None:
    assert features([Cpu(0, VHE16), Cpu(1, CORTEX_A57)])["parange"] == 4
    assert features([Cpu(0, VHE16), Cpu(1, CORTEX_A57)])["fwb"] == 0


def test_a_register_that_the_stub_lacks_leaves_its_features_out() -> None:
    lacking = {k: v for k, v in VHE16.items() if k != "ID_AA64MMFR2_EL1"}
    assert "fwb" not in features([Cpu(0, lacking)])
    assert features([Cpu(0, lacking)])["vhe"] == 1


def test_tgran4_2_zero_means_as_tgran4() -> None:
    """DDI 0487 D24.2 ID_AA64MMFR0_EL1: TGRAN4_2 = 0 follows TGRAN4, where 1 is 52 bits."""
    assert features([Cpu(0, {"ID_AA64MMFR0_EL1": 1 << 28})])["lpa2"] == 1
    assert features([Cpu(0, {"ID_AA64MMFR0_EL1": 1 << 28 | 2 << 40})])["lpa2"] == 0
