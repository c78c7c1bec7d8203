"""Scripts and events: the grammar round-trips, errors name the line, and the model's bits are the codec's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inspector import events as ev
from inspector.codec import Format, Geometry, Kind, Regime, decode
from inspector.model import GENERATIONS, Machine, Prot, ScriptError, Stage2, generation, run_script
from inspector.model.operations import OPERATIONS, format_operation, parse_operation
from inspector.model.session import Setup, parse_setup
from inspector.model.state import Pgtable

SCRIPTS = Path(__file__).resolve().parents[2] / "fixtures" / "scripts"
U64_MAX = (1 << 64) - 1
U64 = st.integers(0, U64_MAX)


def _event(kind: int) -> st.SearchStrategy[ev.RawEvent]:
    forms = {
        "hex": U64,
        "dec": st.integers(-2, 1 << 40),
        "word": st.sampled_from(["ipa", "vmid", "x"]),
        "level": st.one_of(st.integers(-1, 3), st.sampled_from([ev.TTL_UNKNOWN, ev.LEVEL_UNDEFINED])),
    }
    return st.tuples(st.just(kind), *(forms[form] for _, form in ev.EVENT_TYPES[kind][1]))


@given(st.one_of(*(_event(kind) for kind in range(len(ev.EVENT_TYPES)))))
def test_events_round_trip(raw: ev.RawEvent) -> None:
    assert ev.parse_raw(ev.format_raw(raw)) == raw


ENVELOPES = st.builds(
    ev.Envelope,
    st.integers(0, U64_MAX),
    st.integers(0, 511),
    st.sampled_from(ev.Source),
    st.one_of(*(_event(kind) for kind in range(len(ev.EVENT_TYPES)))),
)


@given(st.lists(ENVELOPES, max_size=4), st.data())
def test_a_stream_cut_at_any_byte_keeps_its_whole_events(envelopes: list[ev.Envelope], data: st.DataObject) -> None:
    lines = [f"{envelope}\n" for envelope in envelopes]
    stream = "".join(lines)
    start = data.draw(st.integers(0, len(stream)))
    end = data.draw(st.integers(start, len(stream)))
    ends = [sum(map(len, lines[: n + 1])) for n in range(len(lines))]
    whole = [
        envelope
        for envelope, line, at in zip(envelopes, lines, ends, strict=True)
        if start <= at - len(line) and at - 1 <= end
    ]
    assert list(ev.read_envelopes(stream[start:end])) == whole
    other = str(ev.Envelope(7, 0, ev.Source.GDB, (ev.GET, 0x1000)))
    assert list(ev.read_envelopes(stream[start:end] + other)) == [*whole, ev.parse_envelope(other)]


def test_pieces_that_were_joined_make_no_event() -> None:
    first, second = (str(ev.Envelope(n, 0, ev.Source.GDB, (ev.GET, 0x1000))) for n in (1, 2))
    assert list(ev.read_envelopes(first[:-6] + second[-6:])) == []


def test_the_events_of_an_operation_in_envelopes() -> None:
    steps = list(run_script("init\nmap 0x0 4K pa=0x48000000 prot=R"))
    envelopes = list(ev.enveloped(steps[-1].raw_events, ev.Source.MODEL, cpu=1, first=10))
    assert [envelope.seq for envelope in envelopes] == list(range(10, 10 + len(steps[-1].raw_events)))
    assert str(envelopes[0]) == "@10 cpu=1 source=model alloc page=0x40002000 ;10;"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "get page=0x1",
        "@1 cpu=0 source=model get page=0x1",
        "@1 cpu=0 source=cat get page=0x1 ;1;",
        "@1 cpu=0 source=gdb get page=0x1 ;2;",
    ],
)
def test_a_bad_envelope_says_so(line: str) -> None:
    with pytest.raises(ev.BadEvent, match="not an event in its envelope"):
        ev.parse_envelope(line)


@pytest.mark.parametrize("line", ["", "jump pa=0x1", "get", "get page=zz", "get page=0x1 color=2"])
def test_a_bad_event_says_so(line: str) -> None:
    with pytest.raises(ev.BadEvent):
        ev.parse_raw(line)


@pytest.mark.parametrize(
    "line",
    [
        "map 0x80000000 0x200000 pa=0x48000000 prot=RWXp mem=device+nc sw=5 cache=none flags=shared+fault fail_alloc=2",
        "relax_perms 0x1000 prot=- lose_cas=1 race=value:0x80",
        "free_unlinked page=last level=2",
        "destroy",
        "poke 0x1000 level=3 entry=0x400 refs=-1",
        "annotate 0x0 0x1000 type=2 payload=0x2",
    ],
)
def test_operations_round_trip(line: str) -> None:
    assert format_operation(parse_operation(line)) == line


def test_setups_round_trip() -> None:
    setup = Setup("7.3", "16k", 47, 52, 48, True, Machine(fwb=True, force_pte=False, rcu=False))
    assert parse_setup(setup.text()) == setup


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("init\nfly 0x0", "line 2"),
        ("unmap 0x0 4K", "begin with init"),
        ("machine generation=2.6", "known are"),
        ("machine generation=6.1\ninit\nsplit 0x0 4K cache=1", "6.1 has no split"),
        ("init\nmap 0x0", "addr and size"),
        ("machine generation=6.1\ninit\nmap 0x0 4K prot=R mem=nc", "non-cacheable"),
        ("init\nmap 0 4Q", "line 2"),
        ("machine speed=9", "line 1: machine: speed is not a word of it"),
        ("init\ncreate_unlinked level=9", "line 2: create_unlinked: level is not one of -1 to 3"),
        ("init\npoke 0 level=1 entry=-1", "line 2: poke: '-1' is not an entry: write it as"),
        (
            "init\nmap 0x10000000000000000 4K",
            "line 2: map: '0x10000000000000000' is not an addr: it has more than 64 bits",
        ),
        ("machine ipa=1T", "line 1: machine: ipa is not one of 32 to 52"),
        ("init\nmap 0 4K prot=R\npoke 0 level=1 entry=0x700000003\nunmap 0 4K", "line 3: 0x700000000 is not a table"),
        ("init\npoke 0x0 level=3 entry=1", "no entry of level 3"),
        ("init\ndestroy\ndestroy", "line 3: 0x0 is not a table page"),
    ],
)
def test_a_bad_script_names_its_line(text: str, says: str) -> None:
    with pytest.raises(ScriptError, match=says):
        list(run_script(text))


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(["machine ipa=48 force_pte=1", "init", "map 0 64T pa=0 prot=R"], id="a table of 130 GB"),
        pytest.param(["init", "create_unlinked level=0 force=1 prot=R"], id="a detached one"),
        pytest.param(
            [
                "machine ipa=48",
                "init",
                *(f"poke {n << 39:#x} level=0 entry=0x40000003" for n in range(512)),
                "unmap 0 4K",
            ],
            id="a table that leads to itself",
        ),
        pytest.param(
            ["machine force_pte=1", "init", "map 0 8M pa=0 prot=R", *["flush 0 8M"] * 10000], id="no end of it"
        ),
    ],
)
def test_a_script_without_end_ends_by_its_line(lines: list[str]) -> None:
    with pytest.raises(ScriptError, match=r"^line \d+: this is too large"):
        for _ in run_script("\n".join(lines), most=1 << 20):
            pass


def test_the_walkthrough_shows_the_review() -> None:
    """Section 16 of the facts: what each operation must show."""
    steps = list(run_script((SCRIPTS / "review_walkthrough.txt").read_text()))
    first = next(i for i, step in enumerate(steps) if step.text.startswith("map 0x80000000 0x200000"))
    kinds = [raw[0] for raw in steps[first].raw_events]
    flush = steps[first].raw_events[kinds.index(ev.TLBI)]
    assert flush == (ev.TLBI, "vmid", None, None, None)
    assert [kind for kind in kinds if kind in (ev.STORE, ev.TLBI, ev.FREE)] == [ev.STORE, ev.TLBI, ev.STORE, ev.FREE]
    assert {step.setup.generation for step in steps} == {"6.1", "6.12", "7.3", "5.10"}
    assert any(step.result_text() == "-EAGAIN" for step in steps)
    assert all("\n" not in line for step in steps for line in step.lines())
    assert steps[-1].table == ("no table",)


def test_every_operation_is_documented() -> None:
    """Nothing in the grammar that the model cannot do, nothing it can do that is not in the grammar."""
    from inspector.model.session import Session

    assert set(Session.RUN) == set(OPERATIONS)


@pytest.mark.parametrize("label", GENERATIONS)
@pytest.mark.parametrize("fwb", [False, True])
@pytest.mark.parametrize("shift", [12, 14, 16])
def test_leaf_bits_are_what_the_codec_says(label: str, fwb: bool, shift: int) -> None:
    """Two independent tables of the same facts (model.attributes and the codec) must agree."""
    geometry = Geometry.for_ipa(40, shift)
    behaviours = generation(label)
    pgt = Stage2(behaviours, Machine(fwb=fwb, xnx=True), geometry)
    fmt = Format(Regime.STAGE2, fwb=fwb, xnx=behaviours.two_bit_xn)
    memories = {"normal": 0, "device-nGnRE": int(Prot.DEVICE)}
    if "NC" in behaviours.prot_layout.name or behaviours.two_bit_xn:
        memories["normal-nc"] = int(Prot.NORMAL_NC)
    for name, memory in memories.items():
        for prot in (Prot.R, Prot.RW, Prot.RWX if name == "normal" else Prot.RW):
            attr = pgt.attributes.of_prot(int(prot) | memory)
            assert attr > 0
            leaf = decode(pgt.pte_of(1 << 36) | attr | 3, 3, geometry, fmt)
            assert leaf.kind is Kind.PAGE
            assert leaf.output_address == 1 << 36
            assert (leaf.readable, leaf.writable) == (bool(prot & Prot.R), bool(prot & Prot.W))
            assert leaf.executable == ("X" if prot & Prot.X else "-")
            assert leaf.memory_type == name
            assert leaf.af
            assert leaf.shareability == 3


def test_facts_test_vectors() -> None:
    """Descriptors worked out by hand from DDI 0487 D8.3 (kernel.md 1.7)."""
    pgt = Stage2(generation("6.12"), Machine(fwb=True), Geometry.for_ipa(40))
    assert pgt.pte_of(0x4812_3000) | pgt.attributes.of_prot(int(Prot.RW)) | 3 == 0x0040_0000_4812_37DB
    assert pgt.pte_of(0x4820_0000) | pgt.attributes.of_prot(int(Prot.R | Prot.X)) | 1 == 0x0000_0000_4820_0759
    cold = Stage2(generation("6.12"), Machine(), Geometry.for_ipa(40))
    assert cold.pte_of(0x4812_3000) | cold.attributes.of_prot(int(Prot.RW)) | 3 == 0x0040_0000_4812_37FF


def test_lpa2_is_refused_where_it_is_not_known() -> None:
    with pytest.raises(ValueError, match="no LPA2"):
        Pgtable(generation("6.1"), Machine(), Geometry.for_ipa(48, 12, 52, lpa2=True))
