"""A kernel object at an address, read once, its members by dotted path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from inspector.kernel.space import BadPointer, KernelSpace, untag
from inspector.symbols.api import Member, Symbols, TypeKind

_LIST_BOUND = 1 << 16


@dataclass(frozen=True)
class HostKernel:
    """The running kernel: its symbols and its address space.

    Layout facts are asked for thousands of times in one capture, while the machine stands still: each is looked up
    in the symbols once.
    """

    symbols: Symbols
    space: KernelSpace
    _known: dict[tuple[str, str, str], Any] = field(default_factory=dict, repr=False)

    def _once(self, ask: Callable[[str, str], Any], *names: str) -> Any:
        key = (ask.__name__, names[0], names[1])
        if key not in self._known:
            self._known[key] = ask(*names)
        return self._known[key]

    def member(self, struct: str, path: str) -> Member:
        """As `Symbols.member`."""
        found: Member = self._once(self.symbols.member, struct, path)
        return found

    def enumerator(self, enum_name: str, name: str) -> int | None:
        """As `Symbols.enumerator`."""
        found: int | None = self._once(self.symbols.enumerator, enum_name, name)
        return found

    def has(self, struct: str, path: str) -> bool:
        """As `Symbols.has_member`."""
        return bool(self._once(self.symbols.has_member, struct, path))

    def sizeof(self, struct: str) -> int:
        """As `Symbols.sizeof`."""
        if ("sizeof", struct, "") not in self._known:
            self._known["sizeof", struct, ""] = self.symbols.sizeof(struct)
        return int(self._known["sizeof", struct, ""])

    def at(self, struct: str, address: int) -> KernelObject:
        """The ``struct`` at run-time ``address``; raises `BadPointer` when it is not mapped."""
        address = untag(address)
        return KernelObject(self, struct, address, self.space.read(address, self.sizeof(struct)))

    def symbol(self, name: str) -> int | None:
        """Run-time address of ``name``, or ``None`` where no provider has it."""
        link = self.symbols.address(name)
        return None if link is None else self.space.runtime(link)

    def list_of(self, head: int, struct: str, path: str) -> Iterator[int]:
        """Addresses of the ``struct`` objects on the ``list_head`` at ``head``, linked by member ``path``.

        A list that does not come back to its head ends with `BadPointer`: the kernel was stopped while it edited
        it, or memory is corrupt.
        """
        offset = self.member(struct, path).offset
        head = untag(head)
        node = self.space.pointer(head)
        seen = 0
        while node != head:
            yield node - offset
            seen += 1
            if seen > _LIST_BOUND:
                raise BadPointer(head, f"the list of {struct}.{path} does not end")
            node = self.space.pointer(node)


@dataclass(frozen=True)
class KernelObject:
    """One object: ``data`` is its bytes as they were when it was read."""

    kernel: HostKernel
    struct: str
    address: int
    data: bytes

    def u(self, path: str) -> int:
        """The unsigned value of an integer, enum or pointer member, the pointer without its tag."""
        member = self.kernel.member(self.struct, path)
        size = member.type.size or 8
        value = int.from_bytes(self.data[member.offset : member.offset + size], "little")
        if member.bit_offset is not None and member.bit_size is not None:
            value = (value >> (member.bit_offset - 8 * member.offset)) & ((1 << member.bit_size) - 1)
        return untag(value) if member.type.kind is TypeKind.POINTER else value

    def s(self, path: str) -> int:
        """As `u`, two's complement."""
        size = self.kernel.member(self.struct, path).type.size or 8
        value = self.u(path)
        return value - (1 << (8 * size)) if value >> (8 * size - 1) else value

    def text(self, path: str) -> str:
        """A NUL-terminated character array."""
        member = self.kernel.member(self.struct, path)
        return self.data[member.offset : member.offset + member.type.size].split(b"\0")[0].decode("utf-8", "replace")

    def addr(self, path: str) -> int:
        """The address of a member inside this object."""
        return self.address + self.kernel.member(self.struct, path).offset

    def has(self, path: str) -> bool:
        return self.kernel.has(self.struct, path)

    def kind(self, path: str) -> TypeKind:
        return self.kernel.member(self.struct, path).type.kind
