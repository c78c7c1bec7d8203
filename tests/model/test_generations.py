"""What sets generations apart that were not compared with compiled code: expected events worked out from the facts.

The section numbers are those of ``docs/kernel.md``; 5.15, 6.6 and 6.18 have no harness here.
"""

from __future__ import annotations

import pytest

from fixtures.kernels import COMPILED
from inspector.codec import Geometry
from inspector.events import TTL_UNKNOWN, format_raw
from inspector.generations.registry import number
from inspector.model import GENERATIONS, Machine, MemoryCache, Prot, ScriptError, Stage2, generation, run_script

IPA = 0x8000_0000


def _last(text: str) -> list[str]:
    """The events of a script's last operation, page names in place of addresses."""
    return list(list(run_script(text))[-1].events)


def _head(label: str, words: str = "") -> str:
    return f"machine generation={label} {words}\ninit\n"


def test_5_10_replaces_in_place() -> None:
    """Section 4.4: put early; bit 0 cleared, TLBI by IPA, stored; the caller's get.  No cache maintenance."""
    assert _last(_head("5.10") + "map 0x80000000 4K pa=0x48000000 prot=RW\nmap 0x80000000 4K pa=0x48000000 prot=R") == [
        "put page=T1 count=1",
        "store T1[0] 0x400000480007ff -> 0x400000480007fe",
        "tlbi kind=ipa ipa=0x80000000 level=3",
        "store T1[0] 0x400000480007fe -> 0x4000004800077f (release)",
        "get page=T1",
        "barrier kind=ishst",
    ]


def test_5_10_tolerates_the_same_mapping() -> None:
    """Section 4.4: no store and no TLBI, but the reference goes down and up."""
    text = "map 0x80000000 4K pa=0x48000000 prot=RW\n"
    assert _last(_head("5.10") + text + text) == ["put page=T1 count=1", "get page=T1", "barrier kind=ishst"]


@pytest.mark.parametrize(("label", "kept"), [("5.10", True), ("5.15", False), ("6.12", False)])
def test_hyp_map_over_software_bits(label: str, kept: bool) -> None:
    """Section 1.5: 5.10 compares whole entries, warns, and leaves what is there; later, the bits are overwritten."""
    mapped = "hyp_map 0x10000 4K pa=0x48000000 prot=RW\n"
    entry = 1 << 54 | 0x4800_0000 | 1 << 10 | 3 << 8 | 1 << 6 | 3  # XN, AF, inner shareable, RW, page: DDI 0487 D8.3
    text = f"machine generation={label}\nhyp_init\n{mapped}poke 0x10000 level=3 entry={entry | 1 << 55:#x}\n{mapped}"
    events = _last(text)
    assert ("warn" in events) == kept
    assert any(event.startswith("store") for event in events) != kept


def test_5_10_has_no_get_leaf() -> None:
    """Section 3.6: it came with 5.15."""
    with pytest.raises(ScriptError, match=r"5\.10 has no get_leaf"):
        list(run_script(_head("5.10") + "get_leaf 0x80000000"))
    assert list(run_script(_head("5.15") + "get_leaf 0x80000000"))


def test_5_10_collapse() -> None:
    """Sections 4.5, 16: bit 0, whole VMID, leaf references, the child freed before the block is stored."""
    text = "map 0x80000000 4K pa=0x48000000 prot=RW\nmap 0x80000000 2M pa=0x4a000000 prot=RW"
    assert _last(_head("5.10") + text) == [
        "store T0[0] T1|0x3 -> 0x40003002",
        "tlbi kind=vmid",
        "put page=T1 count=1",
        "put page=T1 count=0",
        "free page=T1",
        "put page=T0 count=1",
        "store T0[0] 0x40003002 -> 0x4000004a0007fd (release)",
        "get page=T0",
        "barrier kind=ishst",
    ]


def test_5_10_unmap_leaves_stale_bits_that_nobody_counts() -> None:
    """Sections 1.6, 6, 10.1."""
    steps = list(run_script(_head("5.10") + "map 0x80000000 4K pa=0x48000000 prot=RW\nunmap 0x80000000 4K\ndestroy"))
    assert steps[-2].events == (
        "store T1[0] 0x400000480007ff -> 0x400000480007fe",
        "tlbi kind=ipa ipa=0x80000000 level=3",
        "put page=T1 count=1",
        "cache kind=dcache pa=0x48000000 size=4096",
        "store T0[0] T1|0x3 -> 0x40003002",
        "tlbi kind=ipa ipa=0x80000000 level=2",
        "put page=T0 count=1",
        "put page=T1 count=0",
        "free page=T1",
        "store P0[2] T0|0x3 -> 0x40002002",
        "tlbi kind=ipa ipa=0x80000000 level=1",
        "put page=P0 count=1",
        "put page=T0 count=0",
        "free page=T0",
    )
    assert steps[-1].events == ("free_exact page=P0 size=8192",)


@pytest.mark.parametrize(
    ("label", "words", "hint"),
    [
        ("5.15", "", "2"),
        ("6.1", "", "0"),
        ("6.6", "", "2"),
        ("6.12", "", "unknown"),
        ("6.18", "", "unknown"),
        ("6.12", "fwb=1 tlb_range=1", "unknown"),
        ("6.6", "fwb=1 tlb_range=1", None),
    ],
)
def test_unmap_of_a_table(label: str, words: str, hint: str | None) -> None:
    """Section 6: the level hint; 6.6.9 leaves it out altogether when it defers."""
    events = _last(_head(label, words) + "map 0x80000000 4K pa=0x48000000 prot=RW\nunmap 0x80000000 4K")
    at = events.index("store T0[0] T1|0x3 -> 0x0")
    assert (events[at + 1] == f"tlbi kind=ipa ipa=0x80000000 level={hint}") == (hint is not None)
    assert ("tlbi kind=range ipa=0x80000000 pages=1" in events) == bool(words)


@pytest.mark.parametrize(
    ("label", "level"), [("6.6", None), ("6.12", "unknown"), ("6.18", "undefined"), ("7.3", "unknown")]
)
def test_relax_perms_on_nothing(label: str, level: str | None) -> None:
    """Section 7.3: what is invalidated when the walk says -EAGAIN."""
    flags = "" if label in ("6.6", "6.12") else " flags=shared+fault" if label == "6.18" else " flags=shared"
    events = _last(_head(label) + "relax_perms 0x80000000 prot=R" + flags)
    assert events == ([] if level is None else [f"tlbi kind=ipa_nsh ipa=0x80000000 level={level}"])


def test_6_6_puts_an_unlinked_table_twice() -> None:
    """Section 8: the error path of create_unlinked in 6.6.9."""
    events = _last(_head("6.6") + "create_unlinked pa=0x40000000 level=1 prot=RW cache=1 force=1")
    assert events[-3:] == ["put page=T0 count=0", "free page=T0", "put page=T0 count=-1"]
    events = _last(_head("6.12") + "create_unlinked pa=0x40000000 level=1 prot=RW cache=1 force=1")
    assert events[-2:] == ["put page=T0 count=0", "free page=T0"]


def test_6_18_tells_annotations_by_a_flag() -> None:
    """Sections 4.2, 5: a PA beyond the limit is an owner up to 6.12 and an address from 6.18 on."""
    for label, maps in (("6.12", False), ("6.18", True)):
        pgt = Stage2(generation(label), Machine(), Geometry.for_ipa(40))
        pgt.init()
        assert pgt.map(IPA, 4096, 1 << 48, int(Prot.R), MemoryCache(8)) == 0
        assert bool(pgt.get_leaf(IPA)[1]) is maps


def test_only_compared_generations_are_called_cross_checked() -> None:
    """Each is compiled and compared by these tests."""
    assert [label for label, each in GENERATIONS.items() if each.cross_checked] == sorted(COMPILED, key=number)


def test_unknown_level_has_a_word() -> None:
    assert format_raw((2, "ipa", IPA, TTL_UNKNOWN, None)) == "tlbi kind=ipa ipa=0x80000000 level=unknown"
