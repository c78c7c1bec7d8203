"""What a register's value says as a whole, in words, and what makes it doubtful.

Any 64-bit value is data: doubts are said, never raised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from inspector.codec import syndrome
from inspector.codec.geometry import Geometry, vtcr_problems
from inspector.codec.registers import REGISTERS, Vttbr, faulting_ipa, register_key, register_layout
from inspector.codec.sysreg import RESERVED, Register


def _vtcr(value: int) -> str:
    return "no table has this shape" if vtcr_problems(value) else Geometry.from_vtcr(value).describe()


def _vttbr(value: int) -> str:
    found = Vttbr.decode(value)
    return f"VMID {found.vmid}, root {found.baddr:#x}" + (", CnP" if found.cnp else "")


def _hpfar(value: int) -> str:
    space = ", in the non-secure IPA space" if REGISTERS["hpfar_el2"].decode(value)["NS"] else ""
    return f"IPA {faulting_ipa(value):#x}{space}"


_WORDS: Mapping[str, Callable[[int], str]] = {
    "vtcr_el2": _vtcr,
    "vttbr_el2": _vttbr,
    "hpfar_el2": _hpfar,
    "esr_el1": syndrome.describe,
    "esr_el2": syndrome.describe,
}


def describe(name: str, value: int) -> str:
    """The value in one line; empty for a register whose fields say all there is."""
    words = _WORDS.get(register_key(name))
    return words(value) if words else ""


def doubts(name: str, value: int, e2h: bool = False) -> list[str]:
    """A sentence for everything that makes the value one that no CPU of this layout gives: `register_layout`."""
    found = [*_reserved(register_layout(name, e2h), value)]
    if register_key(name) == "vtcr_el2":
        found += [*vtcr_problems(value), *_ignored_in_vtcr(value)]
    elif register_key(name) in ("esr_el1", "esr_el2"):
        found += _unassigned(value)
    return list(dict.fromkeys(found))


def _bits(word: int) -> str:
    numbers = [str(bit) for bit in range(64) if word >> bit & 1]
    return f"bit{'s' if len(numbers) > 1 else ''} {', '.join(numbers)} {'are' if len(numbers) > 1 else 'is'}"


def _reserved(register: Register, value: int) -> Iterator[str]:
    fields = register.decode(value)
    if clear := register.res1 & ~value:
        yield f"{_bits(clear)} clear, but RES1"
    if extra := fields["res"] & ~register.res1:
        yield f"{_bits(extra)} set, but RES0"
    for row in register.rows(value):
        number = fields[row.name]
        if row.describe(number) == RESERVED:
            yield f"{row.name}={number} is reserved"
        if number and row.needs:
            yield f"{row.name} {row.place} is set: it is RES0 without {row.needs}"


def _ignored_in_vtcr(value: int) -> Iterator[str]:
    fields = REGISTERS["vtcr_el2"].decode(value)
    four, sixty_four = fields["TG0"] == 0, fields["TG0"] == 1
    if fields["DS"] and sixty_four:
        yield "DS=1 with a 64K granule: it is RES0 there"
    if fields["SL2"] and not (four and fields["DS"]):
        yield "SL2=1 is RES0 but for a 4K granule with DS=1"
    if fields["PS"] == 6 and not sixty_four and not fields["DS"]:
        yield "PS=6 counts as 48 bits without DS=1 (or a 64K granule)"


def _unassigned(value: int) -> Iterator[str]:
    fields = syndrome.ESR.decode(value)
    if fields["EC"] not in syndrome.CLASSES:
        yield f"EC={fields['EC']:#x} is not assigned"
    for name in ("DFSC", "IFSC"):
        if name in fields and syndrome.fault(value) is None:
            yield f"{name}={fields[name]:#x} is reserved"
