"""Damage to the host's own records of a VM: it is a finding, every other VM is checked all the same."""

from __future__ import annotations

import pytest

from inspector.check import run_checks
from inspector.findings import Severity
from inspector.symbols import open_symbols
from tests.live.conftest import take_from
from tests.live.machine import Machine
from tests.live.poke import written

pytestmark = pytest.mark.live

NOT_MAPPED = 0xFFFF_0DEA_DBEE_F000
USER = 0x0000_7FFF_0000_0000


@pytest.mark.parametrize("garbage", [NOT_MAPPED, USER, 1, (1 << 64) - 8], ids=hex)
@pytest.mark.parametrize("member", ["memslots", "arch.mmu.pgt", "vcpu_array.xa_head"])
def test_a_wild_pointer_in_struct_kvm(default_machine: Machine, member: str, garbage: int) -> None:
    symbols = open_symbols(image=default_machine.image)
    clean = take_from(default_machine, symbols)
    vm = clean.vms[1]
    value = garbage if member != "vcpu_array.xa_head" else garbage & ~3 | 2  # an internal node, as xa_mk_node marks it
    place = vm.object_pa[0] + symbols.member("kvm", member).offset
    with written(default_machine, {place: value.to_bytes(8, "little")}):
        capture = take_from(default_machine, symbols)
        found = run_checks(capture)
    errors = [f for f in found if f.severity is Severity.ERROR]
    assert errors, "the damage went unseen"
    assert {f.where.vm for f in errors} == {vm.name}
    assert [v.name for v in capture.vms] == [v.name for v in clean.vms]
    others = [v for v in clean.vms if v.name != vm.name]
    assert [v for v in capture.vms if v.name != vm.name] == others
    assert run_checks(take_from(default_machine, symbols)) == []
