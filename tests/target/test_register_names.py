"""Registers: names that drift, and values against what the program wrote and what QEMU's monitor shows."""

from __future__ import annotations

import re

import pytest

from inspector.target.connect import open_target
from inspector.target.register_names import GENERAL, REGISTERS, choose, exception_level, is_aarch32
from tests.target.conftest import COUNTER, PLANTED, REGISTERS_AND_COUNTING, Starter, eventually


def test_canonical_names_win_over_aliases() -> None:
    assert choose(["SCTLR", "VBAR"]) == {"SCTLR_EL1": "SCTLR", "VBAR_EL1": "VBAR"}
    assert choose(["SCTLR", "SCTLR_EL1", ""]) == {"SCTLR_EL1": "SCTLR_EL1"}
    assert choose(["vttbr_el2", "X0", "nonsense"]) == {"VTTBR_EL2": "vttbr_el2", "x0": "X0"}


def test_every_register_is_listed_once() -> None:
    assert len(set(REGISTERS)) == len(REGISTERS)


@pytest.mark.parametrize(("cpsr", "level"), [(0x3C9, 2), (0x3C5, 1), (0x60000000, 0), (0x3CD, 3)])
def test_exception_levels(cpsr: int, level: int) -> None:
    """M[3:0] of EL2h, EL1h, EL0t and EL3h: 0b1001, 0b0101, 0b0000, 0b1101 (DDI 0487, "SPSR_EL2")."""
    assert exception_level(cpsr) == level
    assert not is_aarch32(cpsr)
    assert is_aarch32(cpsr | 0x10)


@pytest.mark.live
@pytest.mark.parametrize("cpu", ["max", "cortex-a57"])
def test_values_are_what_the_program_wrote(start_qemu: Starter, cpu: str) -> None:
    qemu = start_qemu(REGISTERS_AND_COUNTING, "-smp", "2", cpu=cpu)
    eventually(lambda: qemu.word(COUNTER) > 0, "the program has written its registers")
    with open_target(qemu.stub) as machine:
        first, second = machine.cpus()
        shown = qemu.monitor("info registers -a").split("CPU#1")[0]
    assert {name: first.registers[name] for name in PLANTED} == PLANTED
    expected = {f"x{int(number)}": int(value, 16) for number, value in re.findall(r"X(\d\d)=([0-9a-f]{16})", shown)}
    expected["pc"] = int(re.findall(r"PC=([0-9a-f]{16})", shown)[0], 16)
    expected["sp"] = int(re.findall(r"SP=([0-9a-f]{16})", shown)[0], 16)
    expected["cpsr"] = int(re.findall(r"PSTATE=([0-9a-f]{8})", shown)[0], 16)
    assert {name: first.registers[name] for name in GENERAL} == expected
    assert (first.index, second.index) == (0, 1)
    assert second.registers["VTTBR_EL2"] == 0


@pytest.mark.live
def test_a_register_that_the_cpu_lacks_is_absent(start_qemu: Starter) -> None:
    """TTBR1_EL2 and the _EL12 names belong to FEAT_VHE, which a Cortex-A57 has not."""
    with open_target(start_qemu(cpu="cortex-a57").stub) as machine:
        registers = machine.cpus()[0].registers
    assert {"TTBR1_EL2", "CONTEXTIDR_EL2", "TCR_EL12", "VSTTBR_EL2"}.isdisjoint(registers)
    assert {"TTBR0_EL2", "VTTBR_EL2", "SCTLR_EL1", "VBAR_EL1"} <= set(registers)


@pytest.mark.live
def test_identification_registers(start_qemu: Starter) -> None:
    """Cortex-A57 TRM: ID_AA64MMFR0_EL1 0x1124 (44-bit PA, 16-bit ASID), CTR_EL0 0x8444c004."""
    with open_target(start_qemu(cpu="cortex-a57").stub) as machine:
        registers = machine.cpus()[0].registers
    assert registers["ID_AA64MMFR0_EL1"] == 0x1124
    assert registers["CTR_EL0"] == 0x8444C004
    assert registers["ID_AA64MMFR1_EL1"] == 0


@pytest.mark.live
def test_sixteen_cpus(start_qemu: Starter) -> None:
    """More than one cluster: QEMU's cores carry Aff1 from the ninth on with GICv2, the sixteenth with GICv3."""
    qemu = start_qemu(None, "-smp", "16", machine="virt,virtualization=on,gic-version=3")
    with open_target(qemu.stub) as machine:
        assert [cpu.index for cpu in machine.cpus()] == list(range(16))
