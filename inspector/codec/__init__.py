"""The codec: what 64 bits of a page table, a translation register or a TLBI operand mean, and back.

One idea: bit positions are tables (`bits.Field` in a `bits.Layout`), chosen by regime, level, geometry and format, and
the same tables drive decoding, encoding and numpy arrays (`codec.bulk`, which is imported explicitly).

This room knows nothing of memory, gdb, symbols, kernel objects, kernel releases or policy: it does not read, does not
walk, and does not judge whether KVM would write a value.  What differs between kernel generations comes in as a
`Format`.  Standard library only, ``bulk`` apart: the interpreter inside gdb imports it.

Any 64-bit value is data: `decode` never raises for one.
"""

from inspector.codec.bits import RES, Field, Layout, Part
from inspector.codec.descriptor import Descriptor, decode, decoder, encode
from inspector.codec.formats import Execute, Format, InvalidForm, Kind, MemoryType, Regime, Shareability
from inspector.codec.geometry import GRANULES, Geometry, entry_geometry, levels_of
from inspector.codec.meaning import describe as describe_register
from inspector.codec.meaning import doubts
from inspector.codec.registers import (
    REGISTERS,
    Vttbr,
    decode_register,
    encode_register,
    has_e2h,
    is_known,
    register_key,
    register_layout,
    table_address,
    vmid_bits,
    vttbr,
)
from inspector.codec.sysreg import Register, RegisterField

__all__ = [
    "GRANULES",
    "REGISTERS",
    "RES",
    "Descriptor",
    "Execute",
    "Field",
    "Format",
    "Geometry",
    "InvalidForm",
    "Kind",
    "Layout",
    "MemoryType",
    "Part",
    "Regime",
    "Register",
    "RegisterField",
    "Shareability",
    "Vttbr",
    "decode",
    "decode_register",
    "decoder",
    "describe_register",
    "doubts",
    "encode",
    "encode_register",
    "entry_geometry",
    "has_e2h",
    "is_known",
    "levels_of",
    "register_key",
    "register_layout",
    "table_address",
    "vmid_bits",
    "vttbr",
]
