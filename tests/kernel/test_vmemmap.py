"""What is believed, and what is said, when the ways to find ``struct page`` do not all answer alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from inspector.kernel.objects import HostKernel
from inspector.kernel.space import BadPointer
from inspector.kernel.vmcoreinfo import parse
from inspector.kernel.vmemmap import UnknownVmemmap, find_vmemmap

KERNEL: Any = None
Method = Callable[[HostKernel], set[int]]


def says(*bases: int) -> Method:
    return lambda _: set(bases)


def fails(_: HostKernel) -> set[int]:
    raise BadPointer(0x1000, "not mapped")


def test_one_answer_is_enough() -> None:
    assert find_vmemmap(KERNEL, {"a": says(), "b": fails, "c": says(0x10)}) == 0x10
    assert find_vmemmap(KERNEL, {"a": says(0x10), "b": says(0x10)}) == 0x10


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"a": says(1), "b": says(2), "c": says()}, r"disagree .*\(a: 0x1; b: 0x2\)"),
        ({"a": says(1, 2)}, r"disagree .*\(a: 0x1, 0x2\)"),
        ({"a": says(), "b": fails}, r"none of a, b tells .*\(b: kernel address 0x1000: not mapped\)"),
        ({"a": says()}, r"none of a tells where struct page lies$"),
    ],
)
def test_doubt_is_told(methods: dict[str, Method], message: str) -> None:
    with pytest.raises(UnknownVmemmap, match=message):
        find_vmemmap(KERNEL, methods)


def test_vmcoreinfo_is_lines_of_keys_and_values() -> None:
    text = b"OSRELEASE=6.12.1\nNUMBER(VMEMMAP_START)=0xffffc1ffc0000000\nodd\nA=b=c\n\0OSRELEASE=no"
    assert parse(text) == {"OSRELEASE": "6.12.1", "NUMBER(VMEMMAP_START)": "0xffffc1ffc0000000", "A": "b=c"}
