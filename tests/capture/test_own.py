"""The tables of the host's own in a capture file: they come back, older files have none, and lies are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from inspector.capture.file import load, save
from inspector.capture.selection import choose_own
from inspector.findings import BadInput
from inspector.snapshot import Area, OwnKind, OwnTable, PageStates
from tests.check.test_hyp import FOLDER, HVHE, NVHE, PROTECTED, recorded

OLDER = FOLDER.parent / "6.1-max.s2cap"


@pytest.mark.parametrize("name", [NVHE, HVHE, PROTECTED])
def test_it_comes_back(name: str, tmp_path: Path) -> None:
    capture = recorded(name)
    save(capture, tmp_path / "again")
    assert load(tmp_path / "again") == capture


def test_an_older_file_has_none() -> None:
    """Recorded in November 2026, of a VHE host."""
    capture = load(OLDER)
    assert capture.own == ()
    with pytest.raises(BadInput, match="with VHE the host kernel runs at EL2 itself"):
        choose_own(capture, OwnKind.HYP)
    with pytest.raises(BadInput, match="only with kvm-arm"):
        choose_own(capture, OwnKind.HOST)
    with pytest.raises(BadInput, match="not in this capture"):
        choose_own(replace(recorded(NVHE), own=()), OwnKind.HYP)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: replace(t, root=-1),
        lambda t: replace(t, root=1 << 60),
        lambda t: replace(t, recorded=-1),
        lambda t: replace(t, offset=-1),
        lambda t: replace(t, areas=(Area("hyp text", 0, 1 << 53, "R-X"),)),
        lambda t: replace(t, areas=(Area("hyp text", 0x2000, 0x1000, "R-X"),)),
        lambda t: replace(t, states=(PageStates(1, 0x1000, 0, 0),)),
        lambda t: replace(t, states=(PageStates(0, 0x1000, 16, 0),)),
    ],
)
def test_what_no_host_has_is_refused(spoil: Callable[[OwnTable], OwnTable], tmp_path: Path) -> None:
    capture = recorded(NVHE)
    save(replace(capture, own=tuple(map(spoil, capture.own))), tmp_path / "bad")
    with pytest.raises(BadInput, match="no table that a host has"):
        load(tmp_path / "bad")


def test_states_of_more_pages_than_memory_is_there_for(tmp_path: Path) -> None:
    capture = recorded(PROTECTED)
    many = (PageStates(0, 1 << 51, 3, 0),)
    save(replace(capture, own=tuple(replace(one, states=many) for one in capture.own)), tmp_path / "large")
    with pytest.raises(BadInput, match="pages of the hypervisor"):
        load(tmp_path / "large")
