"""Types out of DWARF 4 and 5, of the few compilation units that define what is asked for, turned into BTF.

The debug information of a kernel is hundreds of megabytes and some 5000 units; one that uses KVM's structures
defines every one of them.  So the units of a few well-known functions are found by address (.debug_aranges),
their types are converted to BTF (as pahole does), and from there on there is one reader of types.  A type
that none of them defines is looked for by its name in .debug_str and the references to that string in
.debug_info.
"""

from __future__ import annotations

import io
import traceback
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo

from inspector.findings import BadInput
from inspector.symbols import btf
from inspector.symbols.btfwrite import BtfWriter, MemberSpec
from inspector.symbols.elf import Elf
from inspector.symbols.table import SymbolTable

# Functions whose units between them define what the kernel room reads, the first definition of a name winning, and the
# files of these, for debug information whose .debug_aranges is absent or has assembly alone (clang).
_FUNCTIONS = {
    "kvm_vm_release": "virt/kvm/kvm_main.c",  # kvm, kvm_vcpu, kvm_memslots, file, task_struct, mm_struct, page
    "kvm_handle_guest_abort": "arch/arm64/kvm/mmu.c",
    "kvm_pgtable_stage2_map": "arch/arm64/kvm/hyp/pgtable.c",
    "kvm_arch_init_vm": "arch/arm64/kvm/arm.c",  # enum kvm_mode, hypercall numbers
    "__kvm_nvhe_kvm_host_prepare_stage2": "arch/arm64/kvm/hyp/nvhe/mem_protect.c",  # host_mmu, pkvm_hyp_vm
    "expand_files": "fs/file.c",  # files_struct, fdtable
    "copy_fd_bitmaps": "fs/file.c",
    "alloc_fdtable": "fs/file.c",
    "vmalloc": "mm/vmalloc.c",  # vm_struct
    "vfree": "mm/vmalloc.c",
    "sparse_init": "mm/sparse.c",  # mem_section
    "__put_task_struct": "kernel/fork.c",  # task_struct, mm_struct, thread_info
}
_FILES = tuple(_FUNCTIONS.values())
_SECTIONS = (
    "debug_info",
    "debug_aranges",
    "debug_abbrev",
    "debug_str",
    "debug_line_str",
    "debug_addr",
    "debug_str_offsets",
    "debug_rnglists",
    "debug_loclists",
)
_REFERENCES = {
    "DW_TAG_pointer_type": btf.PTR,
    "DW_TAG_typedef": btf.TYPEDEF,
    "DW_TAG_const_type": btf.CONST,
    "DW_TAG_volatile_type": btf.VOLATILE,
    "DW_TAG_restrict_type": btf.RESTRICT,
    "DW_TAG_atomic_type": btf.VOLATILE,
}
_COMPOUNDS = {"DW_TAG_structure_type": btf.STRUCT, "DW_TAG_union_type": btf.UNION}
_DEFINITIONS = frozenset((*_COMPOUNDS, "DW_TAG_enumeration_type", "DW_TAG_typedef"))
# On a unit whose types are in a file of their own: DWARF 5 (7.3.2.2), and GNU's DWARF 4.
_SPLIT = frozenset(("DW_AT_dwo_name", "DW_AT_GNU_dwo_name"))
_DW_ATE_FLOAT = 4
_DW_ATE_SIGNED = frozenset((5, 6))  # signed, signed_char
_DW_OP_PLUS_UCONST = 0x23
_MOST_UNITS = 32  # tried for one name
_MAX_DEPTH = 64
_PIECE = 8 << 20


class DwarfTypes:
    """The types of one ELF file's DWARF.  Everything raises `BadInput` when the DWARF is damaged."""

    def __init__(self, elf: Elf) -> None:
        self._path = elf.path
        views = {name: elf.debug(name) for name in _SECTIONS}
        if views["debug_info"] is None or views["debug_abbrev"] is None:
            raise BadInput(f"{elf.path} has no DWARF debug information: give the vmlinux built with debug info")
        self._info = views["debug_info"]
        self._strings = views["debug_str"]
        self._offsets = views["debug_str_offsets"]
        absent = "debug_frame eh_frame debug_loc debug_ranges debug_line debug_pubtypes debug_pubnames debug_sup"
        sections: dict[str, Any] = {f"{name}_sec": None for name in f"{absent} gnu_debugaltlink debug_types".split()}
        sections |= {f"{name}_sec": _descriptor(name, view) for name, view in views.items()}
        config = DwarfConfig(little_endian=True, machine_arch="AArch64", default_address_size=8)
        self._dwarf: Any = DWARFInfo(config=config, **sections)
        self._starts: list[int] = []
        self._bases: list[tuple[int, list[int]]] = []

    def kernel_units(self, table: SymbolTable) -> list[int]:
        """Offsets in .debug_info of the units of `_FUNCTIONS`, or of `_FILES` where .debug_aranges has none of them.

        Raises `BadInput` when these units only name the files that hold their types (split DWARF).
        """
        with _damage(self._path):
            ranges = self._dwarf.get_aranges()
            found: dict[int, None] = {}
            for name in _FUNCTIONS if ranges is not None else ():
                for symbol in table.named(name)[:1]:
                    offset = ranges.cu_offset_at_addr(symbol.address)
                    if offset is not None:
                        found[offset] = None
            units = list(found) or list(self._named_units())
            for unit in units or self._unit_starts():
                if not _SPLIT.isdisjoint(self._dwarf.get_CU_at(unit).get_top_DIE().attributes):
                    raise BadInput(f"the types of {self._path} lie in .dwo files: switch CONFIG_DEBUG_INFO_SPLIT off")
            return units

    def units_naming(self, name: str) -> Iterator[int]:
        """Units that refer to the string ``name`` in .debug_str: any unit that defines such a type does.

        A reference is the string's offset (DW_FORM_strp), or the number of a place in .debug_str_offsets that holds
        it (DW_FORM_strx).
        """
        pattern = name.encode("utf-8", "surrogateescape") + b"\0"
        if self._strings is None or len(pattern) <= 4:  # shorter than the reference: always stored in place
            return
        seen: set[int] = set()
        at = _find(self._strings, pattern, 0)
        while at >= 0:
            # Usually its own string, but the linker may have merged it into the tail of a longer one.
            for unit in self._units_holding(at.to_bytes(4, "little")):
                if unit not in seen:
                    seen.add(unit)
                    yield unit
            at = _find(self._strings, pattern, at + 1)

    def convert(self, units: list[int]) -> bytes:
        """A BTF blob of every struct, union, enum and typedef that ``units`` define at file level, and all
        they use.
        """
        with _damage(self._path):
            return _Converter([self._dwarf.get_CU_at(offset) for offset in units]).blob()

    def search(self, name: str) -> bytes | None:
        """BTF of the first unit that defines a struct, union, enum or enumerator ``name``, or ``None``."""
        with _damage(self._path):
            for count, offset in enumerate(self.units_naming(name)):
                if count == _MOST_UNITS:
                    break
                unit = self._dwarf.get_CU_at(offset)
                if any(_defines(die, name) for die in _each(unit.get_top_DIE())):
                    return _Converter([unit]).blob()
        return None

    def _unit_starts(self) -> list[int]:
        if not self._starts:
            at = 0
            while at + 4 <= len(self._info):
                self._starts.append(at)
                length = int.from_bytes(self._info[at : at + 4], "little")
                if length == 0xFFFF_FFFF:  # 64-bit DWARF
                    length = 8 + int.from_bytes(self._info[at + 4 : at + 12], "little")
                if length == 0:
                    raise _Damaged("a unit has no length")
                at += 4 + length
        return self._starts

    def _units_holding(self, reference: bytes) -> Iterator[int]:
        hit = _find(self._info, reference, 0)
        while hit >= 0:
            unit, end = self._unit_around(hit)
            yield unit
            hit = _find(self._info, reference, end)
        if self._offsets is None:
            return
        hit = _find(self._offsets, reference, 0)
        while hit >= 0:
            bases = self._string_bases()
            index = bisect_right(bases, hit, key=lambda base: base[0])
            if hit % 4 == 0 and index:
                yield from bases[index - 1][1]
            hit = _find(self._offsets, reference, hit + 1)

    def _string_bases(self) -> list[tuple[int, list[int]]]:
        """Where in .debug_str_offsets the part of a unit begins, ascending, and the units whose part it is."""
        if not self._bases:
            found: dict[int, list[int]] = {}
            for unit in self._unit_starts():
                top = self._dwarf.get_CU_at(unit).get_top_DIE()
                if "DW_AT_str_offsets_base" in top.attributes:
                    found.setdefault(_number(top, "DW_AT_str_offsets_base"), []).append(unit)
            self._bases = sorted(found.items())
        return self._bases

    def _unit_around(self, at: int) -> tuple[int, int]:
        starts = self._unit_starts()
        index = bisect_right(starts, at)
        return starts[index - 1], starts[index] if index < len(starts) else len(self._info)

    def _named_units(self) -> Iterator[int]:
        for offset in self._unit_starts():
            name = _name(self._dwarf.get_CU_at(offset).get_top_DIE())
            if name.replace("arch/arm64/kvm/../../../", "").endswith(_FILES):
                yield offset


def dwarf_to_btf(elf: Elf, table: SymbolTable) -> bytes:
    """BTF of the units that matter in a vmlinux; raises `BadInput` when none of them can be found."""
    types = DwarfTypes(elf)
    units = types.kernel_units(table)
    if not units:
        raise BadInput(f"the DWARF in {elf.path} does not cover KVM: build with CONFIG_KVM=y and CONFIG_DEBUG_INFO")
    return types.convert(units)


class _Window(io.BytesIO):
    """A stream over a section, for pyelftools, without copying the section."""

    def __init__(self, view: memoryview) -> None:
        super().__init__()
        self._view = view
        self._at = 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset if whence == 0 else offset + (self._at if whence == 1 else len(self._view))
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = len(self._view) if size is None or size < 0 else self._at + size
        data = bytes(self._view[self._at : end])
        self._at += len(data)
        return data


class _Damaged(Exception):
    """What only damaged DWARF, or none of a C program, can say."""


@contextmanager
def _damage(path: object) -> Iterator[None]:
    """Turns `_Damaged`, and whatever pyelftools raises (it promises no set of exceptions), into `BadInput`.

    What our own code raises on the way is a bug, and stays one.
    """
    try:
        yield
    except Exception as error:
        raised_in = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)][-1]
        if raised_in.startswith("inspector.") and not isinstance(error, _Damaged):
            raise
        raise BadInput(f"the DWARF in {path} is damaged: {error or type(error).__name__}") from error


class _Converter:
    """Types of several units as one BTF blob.

    An id is given out at a type's first mention and its body written when the queue comes to it, so that
    bodies are in the order of ids and nothing recurses.  A declaration stands for the definition in another
    unit, when there is one.
    """

    def __init__(self, units: list[Any]) -> None:
        self._writer = BtfWriter()
        self._ids: dict[object, int] = {}
        self._queue: list[Any] = []
        self._defined: dict[tuple[str, str], Any] = {}
        for unit in units:
            for die in _each(unit.get_top_DIE()):
                if die.tag in _DEFINITIONS and "DW_AT_declaration" not in die.attributes:
                    name = _name(die)
                    self._defined.setdefault((die.tag, name) if name else (die.tag, f"{die.offset:#x}"), die)

    def blob(self) -> bytes:
        for (tag, _), die in self._defined.items():
            if tag == "DW_TAG_enumeration_type" or _name(die):
                self._id(die)
        done = 0
        while done < len(self._queue):
            self._write(self._queue[done])
            done += 1
        return self._writer.blob()

    def _id(self, die: Any) -> int:
        name = _name(die)
        key: object = die.offset
        if die.tag in _COMPOUNDS or die.tag == "DW_TAG_enumeration_type":
            if name:
                die = self._defined.get((die.tag, name), die)
                key = (die.tag, name)
        elif die.tag == "DW_TAG_base_type":
            key = (die.tag, name, _number(die, "DW_AT_byte_size"))
        elif die.tag == "DW_TAG_unspecified_type":
            return 0
        number = self._ids.get(key)
        if number is None:
            self._queue.append(die)
            number = self._ids[key] = len(self._queue)
        return number

    def _target(self, die: Any) -> int:
        """The id of DW_AT_type; absent means void."""
        return self._id(die.get_DIE_from_attribute("DW_AT_type")) if "DW_AT_type" in die.attributes else 0

    def _write(self, die: Any) -> None:
        tag, name, writer = die.tag, _name(die), self._writer
        size = _number(die, "DW_AT_byte_size")
        if tag == "DW_TAG_base_type":
            encoding = _number(die, "DW_AT_encoding")
            if encoding == _DW_ATE_FLOAT:
                writer.real(name, size)
            else:
                writer.integer(name, size, signed=encoding in _DW_ATE_SIGNED)
        elif tag in _REFERENCES:
            writer.reference(_REFERENCES[tag], self._target(die), name)
        elif tag in _COMPOUNDS:
            if "DW_AT_declaration" in die.attributes:
                writer.forward(name, union=tag == "DW_TAG_union_type")
            else:
                writer.compound(_COMPOUNDS[tag], name, size, list(self._fields(die)))
        elif tag == "DW_TAG_enumeration_type":
            values = [(_name(each), _value(each)) for each in _children(die, "DW_TAG_enumerator")]
            signed = any(value < 0 for _, value in values)
            writer.enumeration(name, size, values, signed=signed)
        elif tag == "DW_TAG_array_type":
            counts = [_count(each) for each in _children(die, "DW_TAG_subrange_type")]
            writer.array(self._target(die), prod(counts or [0]))  # several dimensions as one, as pahole has it
        elif tag == "DW_TAG_subroutine_type":
            writer.prototype()
        else:
            raise _Damaged(f"a type of kind {tag} is unknown to this tool")

    def _fields(self, die: Any) -> Iterator[MemberSpec]:
        for each in _children(die, "DW_TAG_member"):
            if "DW_AT_external" in each.attributes or "DW_AT_const_value" in each.attributes:
                continue
            offset = 8 * _location(each)
            bits = _number(each, "DW_AT_bit_size") if "DW_AT_bit_size" in each.attributes else None
            if bits is not None:
                if "DW_AT_data_bit_offset" in each.attributes:  # DWARF 4 and later
                    offset = _number(each, "DW_AT_data_bit_offset")
                elif "DW_AT_bit_offset" in each.attributes:  # counts from the most significant bit of its unit
                    size = _number(each, "DW_AT_byte_size") or _type_size(each)
                    offset += 8 * size - _number(each, "DW_AT_bit_offset") - bits
            yield MemberSpec(_name(each), self._target(each), offset, bits)


def _descriptor(name: str, view: memoryview | None) -> DebugSectionDescriptor | None:
    return None if view is None else DebugSectionDescriptor(_Window(view), f".{name}", None, len(view), 0)


def _find(view: memoryview, pattern: bytes, start: int) -> int:
    """`bytes.find` on a view, a piece at a time."""
    while start < len(view):
        at = bytes(view[start : start + _PIECE + len(pattern) - 1]).find(pattern)
        if at >= 0:
            return start + at
        start += _PIECE
    return -1


def _defines(die: Any, name: str) -> bool:
    if die.tag in _COMPOUNDS:
        return _name(die) == name and "DW_AT_declaration" not in die.attributes
    if die.tag != "DW_TAG_enumeration_type":
        return False
    return _name(die) == name or any(_name(each) == name for each in _children(die, "DW_TAG_enumerator"))


def _each(die: Any) -> Iterator[Any]:
    """The children; in damaged DWARF a DW_AT_sibling could lead back to one already seen."""
    last = die.offset
    for each in die.iter_children():
        if each.offset <= last:
            raise _Damaged("an entry's siblings go round in a circle")
        last = each.offset
        yield each
        # Without that attribute the library looks for the next one by itself, which has no end below such a circle.
        if each.has_children and "DW_AT_sibling" not in each.attributes and each._terminator is None:
            for _ in _each(each):
                pass


def _children(die: Any, tag: str) -> Iterator[Any]:
    return (each for each in _each(die) if each.tag == tag)


def _name(die: Any) -> str:
    attribute = die.attributes.get("DW_AT_name")
    if attribute is None:
        return ""
    if not isinstance(attribute.value, bytes):
        raise _Damaged("a name is no string")
    return attribute.value.decode("utf-8", "surrogateescape")


def _number(die: Any, name: str) -> int:
    attribute = die.attributes.get(name)
    return attribute.value if attribute is not None and isinstance(attribute.value, int) else 0


def _value(enumerator: Any) -> int:
    return _number(enumerator, "DW_AT_const_value")


def _count(subrange: Any) -> int:
    """Elements of one dimension; 0 when it has no bound (a flexible array)."""
    if "DW_AT_count" in subrange.attributes:
        return _number(subrange, "DW_AT_count") & 0xFFFF_FFFF
    if "DW_AT_upper_bound" in subrange.attributes:  # GCC writes -1, or the largest unsigned number, for [0]
        return _number(subrange, "DW_AT_upper_bound") + 1 & 0xFFFF_FFFF
    return 0


def _location(member: Any) -> int:
    """DW_AT_data_member_location in bytes: a number, or (DWARF 2) an expression that adds one."""
    attribute = member.attributes.get("DW_AT_data_member_location")
    if attribute is None:
        return 0
    if isinstance(attribute.value, int):
        return attribute.value
    operation, *operand = attribute.value if isinstance(attribute.value, list) and attribute.value else (None,)
    if operation != _DW_OP_PLUS_UCONST:
        raise _Damaged(f"member {_name(member)} has a location that is computed at run time")
    return sum((byte & 0x7F) << 7 * index for index, byte in enumerate(operand))


def _type_size(die: Any) -> int:
    """DW_AT_byte_size of a member's type, through typedefs and qualifiers."""
    for _ in range(_MAX_DEPTH):
        if "DW_AT_byte_size" in die.attributes or "DW_AT_type" not in die.attributes:
            break
        die = die.get_DIE_from_attribute("DW_AT_type")
    return _number(die, "DW_AT_byte_size")
