"""ESR_ELx: why an exception was taken (DDI 0487 D24.2 ESR_EL2, ISS encodings).

The exception class EC chooses what the ISS means.  Decoded are the classes that a KVM host meets at EL2: aborts,
calls, trapped system registers and waits.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from inspector.codec.sysreg import Register, RegisterField, row

INSTRUCTION_ABORTS = (0x20, 0x21)
DATA_ABORTS = (0x24, 0x25)
_CALLS = {0x11: "SVC", 0x12: "HVC", 0x15: "SVC", 0x16: "HVC", 0x17: "SMC"}
_WFX, _SYS64, _BRK64 = 0x01, 0x18, 0x3C

CLASSES: Mapping[int, str] = {
    0x00: "unknown reason",
    0x01: "trapped WFI or WFE",
    0x03: "trapped MCR or MRC (coproc 15)",
    0x04: "trapped MCRR or MRRC (coproc 15)",
    0x05: "trapped MCR or MRC (coproc 14)",
    0x06: "trapped LDC or STC",
    0x07: "trapped SVE, SIMD or floating point access",
    0x08: "trapped VMRS",
    0x09: "trapped pointer authentication",
    0x0A: "trapped instruction of another kind",
    0x0C: "trapped MRRC (coproc 14)",
    0x0D: "branch target exception",
    0x0E: "illegal execution state",
    0x11: "SVC from AArch32",
    0x12: "HVC from AArch32",
    0x13: "SMC from AArch32",
    0x14: "trapped MSRR, MRRS or 128-bit system instruction",
    0x15: "SVC from AArch64",
    0x16: "HVC from AArch64",
    0x17: "SMC from AArch64",
    0x18: "trapped MSR, MRS or system instruction",
    0x19: "trapped SVE access",
    0x1A: "trapped ERET",
    0x1B: "trapped TSTART",
    0x1C: "pointer authentication failure",
    0x1D: "trapped SME access",
    0x1E: "granule protection check",
    0x1F: "implementation defined (to EL3)",
    0x20: "instruction abort from a lower exception level",
    0x21: "instruction abort from the same exception level",
    0x22: "PC alignment fault",
    0x24: "data abort from a lower exception level",
    0x25: "data abort from the same exception level",
    0x26: "SP alignment fault",
    0x27: "memory copy or set exception",
    0x28: "trapped floating point exception from AArch32",
    0x2C: "trapped floating point exception from AArch64",
    0x2D: "guarded control stack exception",
    0x2F: "SError",
    0x30: "breakpoint from a lower exception level",
    0x31: "breakpoint from the same exception level",
    0x32: "software step from a lower exception level",
    0x33: "software step from the same exception level",
    0x34: "watchpoint from a lower exception level",
    0x35: "watchpoint from the same exception level",
    0x38: "BKPT from AArch32",
    0x3A: "vector catch from AArch32",
    0x3C: "BRK from AArch64",
    0x3D: "profiling exception",
}
"""EC to what it says; a value that is not listed is not assigned."""


class FaultKind(enum.StrEnum):
    """What a fault status code says went wrong."""

    ADDRESS_SIZE = "address size fault"
    TRANSLATION = "translation fault"
    ACCESS_FLAG = "access flag fault"
    PERMISSION = "permission fault"
    EXTERNAL = "synchronous external abort"
    EXTERNAL_ON_WALK = "synchronous external abort on a table walk"
    TAG_CHECK = "synchronous tag check fault"
    PARITY = "synchronous parity or ECC error"
    PARITY_ON_WALK = "synchronous parity or ECC error on a table walk"
    ALIGNMENT = "alignment fault"
    GRANULE_PROTECTION = "granule protection fault"
    GRANULE_PROTECTION_ON_WALK = "granule protection fault on a table walk"
    TLB_CONFLICT = "TLB conflict abort"
    ATOMIC_UPDATE = "unsupported atomic hardware update fault"
    LOCKDOWN = "implementation defined fault (lockdown)"
    EXCLUSIVE = "implementation defined fault (unsupported exclusive or atomic)"


@dataclass(frozen=True)
class Fault:
    """A fault, and the level of the table walk at which it was met, for the kinds that have one."""

    kind: FaultKind
    level: int | None = None

    def __str__(self) -> str:
        return self.kind if self.level is None else f"{self.kind}, level {self.level}"


def _levels(kind: FaultKind, first: int, *others: tuple[int, int]) -> dict[int, Fault]:
    """Levels 0 to 3 from status code ``first`` on, and (code, level) pairs for those below."""
    return {first + n: Fault(kind, n) for n in range(4)} | {code: Fault(kind, level) for code, level in others}


FAULTS: Mapping[int, Fault] = {
    **_levels(FaultKind.ADDRESS_SIZE, 0x00, (0x29, -1), (0x2C, -2)),
    **_levels(FaultKind.TRANSLATION, 0x04, (0x2B, -1), (0x2A, -2)),
    **_levels(FaultKind.ACCESS_FLAG, 0x08),
    **_levels(FaultKind.PERMISSION, 0x0C),
    0x10: Fault(FaultKind.EXTERNAL),
    0x11: Fault(FaultKind.TAG_CHECK),
    **_levels(FaultKind.EXTERNAL_ON_WALK, 0x14, (0x13, -1), (0x12, -2)),
    0x18: Fault(FaultKind.PARITY),
    **_levels(FaultKind.PARITY_ON_WALK, 0x1C, (0x1B, -1)),
    0x21: Fault(FaultKind.ALIGNMENT),
    **_levels(FaultKind.GRANULE_PROTECTION_ON_WALK, 0x24, (0x23, -1), (0x22, -2)),
    0x28: Fault(FaultKind.GRANULE_PROTECTION),
    0x30: Fault(FaultKind.TLB_CONFLICT),
    0x31: Fault(FaultKind.ATOMIC_UPDATE),
    0x34: Fault(FaultKind.LOCKDOWN),
    0x35: Fault(FaultKind.EXCLUSIVE),
}
"""DFSC.  Level -1 needs FEAT_LPA2, level -2 FEAT_D128; a value that is not listed is reserved."""

_OF_DATA = (FaultKind.TAG_CHECK, FaultKind.ALIGNMENT, FaultKind.LOCKDOWN, FaultKind.EXCLUSIVE)
INSTRUCTION_FAULTS = {code: fault for code, fault in FAULTS.items() if fault.kind not in _OF_DATA}
"""IFSC: as DFSC, without what only a data access meets."""


def _words(faults: Mapping[int, Fault]) -> dict[int, str]:
    return {code: str(fault) for code, fault in faults.items()}


_ISS2 = row("ISS2", 55, 32)

_ABORT = (
    row("S1PTW", 7, meaning="fault on the stage-2 translation of a stage-1 walk"),
    row("EA", 9, meaning="external abort type"),
    row("FnV", 10, meaning="FAR is not valid"),
    row("SET", 12, 11, "synchronous error type"),
)
_INSTRUCTION_ABORT: tuple[RegisterField, ...] = (
    row("IFSC", 5, 0, "fault status", _words(INSTRUCTION_FAULTS)),
    *_ABORT,
    _ISS2,
)
_DATA_ABORT: tuple[RegisterField, ...] = (
    row("DFSC", 5, 0, "fault status", _words(FAULTS)),
    row("WnR", 6, meaning="write", values={0: "read", 1: "write"}),
    _ABORT[0],
    row("CM", 8, meaning="cache maintenance or address translation instruction"),
    *_ABORT[1:],
    row("VNCR", 13, meaning="access through VNCR_EL2"),
    row("AR", 14, meaning="acquire or release"),
    row("SF", 15, meaning="64-bit register"),
    row("SRT", 20, 16, "register of the access"),
    row("SSE", 21, meaning="sign-extended"),
    row("SAS", 23, 22, "size of the access", {0: "1 byte", 1: "2 bytes", 2: "4 bytes", 3: "8 bytes"}),
    row("ISV", 24, meaning="SAS, SSE, SRT, SF and AR are valid"),
    row("Xs", 36, 32, "status register of ST64BV"),
    row("DirtyBit", 37, meaning="permission fault for want of a dirty state"),
    row("Overlay", 38, meaning="permission fault by an overlay"),
    row("AssuredOnly", 39, meaning="permission fault by AssuredOnly"),
    row("GCS", 40, meaning="guarded control stack access"),
    row("TagAccess", 41, meaning="fault by NoTagAccess"),
    row("TnD", 42, meaning="fault on an allocation tag"),
    row("HDBSSF", 43, meaning="fault by the dirty state tracking structure"),
)
_CALL: tuple[RegisterField, ...] = (row("imm16", 15, 0, "the instruction's immediate"), _ISS2)
_BREAK: tuple[RegisterField, ...] = (row("Comment", 15, 0, "the instruction's immediate"), _ISS2)
_WAIT: tuple[RegisterField, ...] = (
    row("TI", 1, 0, "the instruction", {0: "WFI", 1: "WFE", 2: "WFIT", 3: "WFET"}),
    row("RV", 2, meaning="RN is valid"),
    row("RN", 9, 5, "register of the timeout"),
    row("COND", 23, 20),
    row("CV", 24, meaning="COND is valid"),
    _ISS2,
)
_SYSTEM: tuple[RegisterField, ...] = (
    row("Direction", 0, meaning="read", values={0: "write (MSR)", 1: "read (MRS)"}),
    row("CRm", 4, 1),
    row("Rt", 9, 5, "general register"),
    row("CRn", 13, 10),
    row("Op1", 16, 14),
    row("Op2", 19, 17),
    row("Op0", 21, 20),
    _ISS2,
)

ESR = Register(
    fields=(row("IL", 25, meaning="32-bit instruction"), row("EC", 31, 26, "exception class", CLASSES)),
    selector="EC",
    variants={
        **dict.fromkeys(INSTRUCTION_ABORTS, _INSTRUCTION_ABORT),
        **dict.fromkeys(DATA_ABORTS, _DATA_ABORT),
        **dict.fromkeys(_CALLS, _CALL),
        _BRK64: _BREAK,
        _WFX: _WAIT,
        _SYS64: _SYSTEM,
    },
    otherwise=(row("ISS", 24, 0, "syndrome"), _ISS2),
)
"""ESR_EL1 and ESR_EL2."""


def fault(esr: int) -> Fault | None:
    """The fault that an ESR_ELx of an abort reports; ``None`` for other exceptions and reserved status codes."""
    found = ESR.decode(esr)
    return INSTRUCTION_FAULTS.get(found["IFSC"]) if "IFSC" in found else FAULTS.get(found.get("DFSC", -1))


def _general(number: int, wide: bool = True) -> str:
    return f"{'X' if wide else 'W'}{'ZR' if number == 31 else number}"


def _access(found: Mapping[str, int]) -> str:
    if found["CM"]:
        return "by a cache maintenance or address translation instruction"
    verb, place = ("write", "from") if found["WnR"] else ("read", "into")
    if not found["ISV"]:
        return f"on a {verb}"
    count = 1 << found["SAS"]
    said = f"on a {verb} of {count} byte{'s' if count > 1 else ''} {place} {_general(found['SRT'], bool(found['SF']))}"
    return said + (", sign-extended" if found["SSE"] else "") + (", acquire or release" if found["AR"] else "")


def describe(esr: int) -> str:
    """``data abort from a lower exception level: translation fault, level 2, on a write of 4 bytes from W3``."""
    found = ESR.decode(esr)
    code = found["EC"]
    said = CLASSES.get(code, f"exception class {code:#x}, which is not assigned")
    if code in INSTRUCTION_ABORTS or code in DATA_ABORTS:
        words = [str(fault(esr) or "a reserved fault status")]
        words += [_access(found)] if code in DATA_ABORTS else []
        words += ["during a stage-1 walk"] if found["S1PTW"] else []
        words += ["FAR is not valid"] if found["FnV"] else []
        return f"{said}: {', '.join(words)}"
    if code in _CALLS:
        return f"{said}: {_CALLS[code]} #{found['imm16']:#x}"
    if code == _BRK64:
        return f"{said}: BRK #{found['Comment']:#x}"
    if code == _WFX:
        return f"trapped {('WFI', 'WFE', 'WFIT', 'WFET')[found['TI']]}"
    if code == _SYS64:
        name = f"S{found['Op0']}_{found['Op1']}_C{found['CRn']}_C{found['CRm']}_{found['Op2']}"
        general = _general(found["Rt"])
        return f"{said}: " + (f"MRS {general}, {name}" if found["Direction"] else f"MSR {name}, {general}")
    return said
