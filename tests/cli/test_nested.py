"""A guest hypervisor's shadow tables on the command line, from the recorded capture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.schema import errors
from tests.cli.test_cli import invoke, refused

CAPTURE = str(Path(__file__).resolve().parents[2] / "fixtures/captures/nested/7.3.s2cap")


def test_vms_says_what_each_shadow_stands_for() -> None:
    said = invoke("--from", CAPTURE, "vms").stdout
    assert "for L1's VTTBR_EL2 0x0001000040100000  BADDR=0x40100000 VMID=1" in said
    assert "39-bit IPA, 4K granule, 48-bit PA, starts at level 1 with 1 root table; in force for vCPU 0" in said
    assert "for L1's VMID 2 with HCR_EL2.VM=0 (nested_stage2_enabled=0); in force for no vCPU" in said
    document = json.loads(invoke("--from", CAPTURE, "vms", "--json").stdout)
    assert not errors(document)
    (vm,) = document["vms"]
    assert [mmu["nested_stage2"] for mmu in vm["mmus"]] == [None, False, True]
    assert vm["vcpus"][0]["el2"]["VTTBR_EL2"] == "0x0001000040100000"


def test_walk_through_both_tables() -> None:
    said = invoke("--from", CAPTURE, "walk", "0x10010", "--vm", "vm0", "--shadow", "3").stdout
    assert "mapped: page at L1 IPA 0x40013010 (level 3, RW-, normal)" in said
    assert said.endswith("the same page\n")
    document = json.loads(invoke("--from", CAPTURE, "walk", "0x10010", "--shadow", "3", "--json").stdout)
    assert not errors(document)
    assert document["guest"]["l1"] == "0x40013010" and document["backing"]["pa"] == document["pa"]


@pytest.mark.parametrize(
    ("address", "shadow", "said"),
    [
        ("0x40050008", "2", "L1's HCR_EL2.VM is clear: the address is one of L1's"),
        ("0x900000", "3", "    not mapped: invalid entry at level 2"),
        ("0x205008", "3", "mapped: block at L1 IPA 0x80005008"),
    ],
)
def test_other_walks(address: str, shadow: str, said: str) -> None:
    assert said in invoke("--from", CAPTURE, "walk", address, "--shadow", shadow).stdout
    assert not errors(json.loads(invoke("--from", CAPTURE, "walk", address, "--shadow", shadow, "--json").stdout))


def test_no_such_shadow() -> None:
    assert "there are 2 of vm0, 3 of vm0" in refused(invoke("--from", CAPTURE, "walk", "0", "--shadow", "9"))
    assert "leave one out" in refused(invoke("--from", CAPTURE, "walk", "0", "--host", "--shadow", "3"))


def test_check_and_dump() -> None:
    assert invoke("--from", CAPTURE, "check").exit_code == 0
    assert "shadow stage-2 VMID 3" in invoke("--from", CAPTURE, "dump").stdout
    assert not errors(json.loads(invoke("--from", CAPTURE, "dump", "--json").stdout))
