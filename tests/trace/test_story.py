"""What a trace tells of one operation, one entry and one instant, against the tables of the kernel's own code."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from inspector import cli
from inspector.codec import Kind
from inspector.crosscheck.differ import KernelSide
from inspector.events import CALL, FREE, RET, STORE, TLBI, BadEvent, format_raw, parse_raw
from inspector.findings import BadInput
from inspector.model.machine import Machine
from inspector.model.session import Setup
from inspector.trace import story
from inspector.trace.file import Writer
from tests.crosscheck import kernels
from tests.trace.test_lockstep import FEATURES, IPA, Events, operations, traced

pytestmark = pytest.mark.harness

LABEL = "6.12"


@pytest.fixture(scope="module")
def events() -> Events:
    return traced(LABEL, FEATURES)


@pytest.fixture(scope="module")
def path(events: Events, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("story") / "run.s2trace"
    with found.open("wb", buffering=0) as stream:
        writer = Writer(stream, {"generation": LABEL, "page_shift": 12, "release": "6.12.1"})
        for lane, raw in events:
            writer.add(lane, raw)
        writer.flush()
    return found


def test_the_tables_at_an_operations_end_are_the_kernels(path: Path) -> None:
    """Every page that is linked, word by word, after every fourth operation."""
    side = KernelSide(Setup(LABEL, machine=Machine(fwb=True, tlb_range=True)), kernels.kernel(LABEL))
    number = checked = 0
    try:
        for at, operation in enumerate(operations(LABEL)[:-1]):
            _, raws = side.apply(operation)
            # A grace period is a callback for each table that it frees, and none where nothing waits.
            if operation.name == "grace_period":
                number += sum(raw[0] == FREE for raw in raws)
                continue
            number += 1
            if at % 4:
                continue
            table = story.state(path, number)[1]
            store, root = side.store()
            assert table.root == root
            held = {pa: page.entries for pa, page in table.pages.items() if page.level is not None}
            assert all(store.pages[pa] == entries for pa, entries in held.items())
            assert root in held
            assert not table.tree().problems
            checked += 1
    finally:
        side.close()
    assert checked > 5


def test_an_operation_is_told_event_by_event(path: Path, events: Events) -> None:
    calls = [at for at, (_, raw) in enumerate(events) if raw[0] == CALL]
    for number in (1, 2, 30):
        told = story.explain(path, number)
        assert [each.raw for each in told] == [raw for _, raw in events[calls[number - 1] : calls[number]]]
        assert told[-1].raw[0] == RET
    stores = [each for each in story.explain(path, 2) if each.raw[0] == STORE]
    assert all(each.change is not None and each.change.new.raw == each.raw[3] for each in stores)


def test_an_entrys_life_is_a_chain(path: Path, events: Events) -> None:
    """What a store leaves is what the next one finds; at the end the entry is gone with its table."""
    found = [told for _, told in story.life(path, IPA, 1)]
    assert sum(told.raw[0] == TLBI for told in found) > 2
    by_place: dict[int, int] = {}
    for told in found:
        if told.change is None:
            continue
        assert told.change.ia <= IPA < told.change.ia + told.change.size
        assert by_place.get(told.change.pa, told.change.old.raw) == told.change.old.raw
        by_place[told.change.pa] = told.change.new.raw
    assert {told.change.level for told in found if told.change is not None} >= {1, 2, 3}
    assert any(told.change.new.kind is Kind.BLOCK for told in found if told.change is not None)
    assert story.life(path, IPA, 9) == []


def test_a_number_that_there_is_not(path: Path) -> None:
    for ask in (story.explain, story.state):
        with pytest.raises(BadInput, match="no operation 100000"):
            ask(path, 100000)


@pytest.mark.parametrize("options", [["--explain", "2"], ["--entry", hex(IPA)], ["--until", "20"]])
def test_the_command(path: Path, options: list[str]) -> None:
    done = CliRunner().invoke(cli.main_group, ["replay", str(path), *options])
    assert done.exit_code == 0, done.output
    assert "0x80000000" in done.output
    again = json.loads(CliRunner().invoke(cli.main_group, ["replay", str(path), *options, "--json"]).output)
    assert again["command"] == "replay"


@pytest.mark.parametrize("options", [["--explain", "2", "--until", "3"], ["--table", "1"], ["--entry", "x"]])
def test_questions_that_cannot_be_asked(path: Path, options: list[str]) -> None:
    done = CliRunner().invoke(cli.main_group, ["replay", str(path), *options])
    assert done.exit_code == 2


@pytest.mark.parametrize("questions", [[], ["--until", "3"], ["--entry", hex(IPA)]])
def test_a_trace_that_makes_no_sense_is_one_sentence(events: Events, questions: list[str], tmp_path: Path) -> None:
    """Any word of it may be any other: it comes from somebody else."""
    dice = random.Random(5)
    lines = [format_raw(raw) for _, raw in events]
    for number in range(60):
        at = dice.randrange(len(lines))
        word = dice.choice(("0x0", "0xffffffffffffffffff", "-1", "9" * 30, "0x80000000", "pgt=", "x"))
        pieces = re.split(r"(=[^= ,]+)", lines[at])
        changed = "".join("=" + word if each[:1] == "=" and dice.random() < 0.4 else each for each in pieces)
        try:
            raw = parse_raw(changed)
        except BadEvent:
            continue
        path = tmp_path / f"{number}.s2trace"
        with path.open("wb", buffering=0) as stream:
            writer = Writer(stream, {"generation": LABEL, "page_shift": 12, "release": "6.12.1", "walk_flags": {}})
            for lane, each in (*events[:at], (0, raw), *events[at + 1 :]):
                writer.add(lane, each)
            writer.flush()
        done = CliRunner().invoke(cli.main_group, ["replay", str(path), *questions])
        assert done.exit_code in (0, 1, 2, 125), (changed, done.output)
        assert "internal error" not in done.output, (changed, done.output)
        assert done.exception is None or isinstance(done.exception, SystemExit)
        path.unlink()
