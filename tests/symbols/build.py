"""A synthetic kernel shared by the tests: its symbols, its exports and its types."""

from __future__ import annotations

from inspector.symbols import btf
from inspector.symbols.btfwrite import BtfWriter, MemberSpec
from tests.symbols.synth import Entry

FUNCTIONS = [
    Entry(0x0, "T", "_text"),
    Entry(0x10000, "T", "_stext"),
    *(Entry(0x10040 + 0x40 * index, "tT"[index % 2], f"sys_call_{index:04d}") for index in range(700)),
    Entry(0x20000, "T", "kvm_pgtable_stage2_map"),
    Entry(0x20100, "t", "kvm_vm_release"),
    Entry(0x20200, "t", "a_name_long_enough_to_need_two_bytes_of_length_" + "x" * 120),
]
DATA = [
    Entry(0x30010, "D", "init_task"),
    Entry(0x30000, "D", "kimage_voffset"),
    Entry(0x30008, "D", "memstart_addr"),
    *(Entry(0x31000 + 8 * index, "D", f"datum_{index:02d}") for index in range(20)),
]
EXPORTS = [*DATA, Entry(0x20000, "T", "kvm_pgtable_stage2_map"), Entry(0x10040, "t", "sys_call_0000")]


def types() -> bytes:
    """BTF of ``struct outer`` and what it needs; see `test_btf.py`."""
    writer = BtfWriter()
    number = writer.integer("unsigned int", 4)
    long = writer.integer("long int", 8, signed=True)
    anonymous = writer.compound(
        btf.STRUCT,
        "",
        8,
        [MemberSpec("deep", number, 0), MemberSpec("bits", number, 32, 3), MemberSpec("more", number, 35, 5)],
    )
    union = writer.compound(btf.UNION, "", 8, [MemberSpec("whole", long, 0), MemberSpec("", anonymous, 0)])
    inner = writer.compound(btf.STRUCT, "inner", 24, [MemberSpec("first", long, 0), MemberSpec("", union, 64)])
    named = writer.reference(btf.TYPEDEF, writer.reference(btf.CONST, inner), "inner_t")
    pointer = writer.reference(btf.PTR, named)
    row = writer.array(number, 3)
    both = writer.array(row, 2)
    mode = writer.enumeration("mode", 4, [("MODE_A", 0), ("MODE_B", 5)], signed=False)
    wide = writer.enumeration("wide", 8, [("WIDE", 1 << 40), ("MINUS", -1)], signed=True)
    hidden = writer.forward("hidden")
    to_hidden = writer.reference(btf.PTR, hidden)
    function = writer.reference(btf.PTR, writer.prototype())
    writer.compound(
        btf.STRUCT,
        "outer",
        96,
        [
            MemberSpec("arch", named, 0),
            MemberSpec("link", pointer, 192),
            MemberSpec("table", both, 256),
            MemberSpec("mode", mode, 448),
            MemberSpec("wide", wide, 512),
            MemberSpec("hidden", to_hidden, 576),
            MemberSpec("call", function, 640),
        ],
    )
    return writer.blob()
