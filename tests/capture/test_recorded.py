"""Captures of real kernels (`fixtures/record.sh`), held against the ground truth recorded with them, without QEMU."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from fixtures import truth
from inspector.capture.file import load
from inspector.check import run_checks
from inspector.snapshot import Capture
from tests.agreement import backing_agrees, disagreements, slots_agree, vtcr_agrees

FOLDER = Path(__file__).resolve().parents[2] / "fixtures" / "captures"
RECORDED = sorted(FOLDER.glob("*.s2cap"))


@pytest.fixture(scope="module", params=RECORDED, ids=lambda path: path.stem)
def recorded(request: pytest.FixtureRequest) -> tuple[Capture, truth.Truth]:
    path: Path = request.param
    lines = gzip.decompress(path.with_suffix(".truth.gz").read_bytes()).decode().splitlines()
    return load(path), truth.parse(lines)


def test_there_is_one_of_each_kernel() -> None:
    assert {path.stem.partition("-")[0] for path in RECORDED} == {"6.1", "6.12", "7.3"}


def test_each_page_is_what_pagemap_says(recorded: tuple[Capture, truth.Truth]) -> None:
    capture, told = recorded
    assert len(told.vms) >= 7
    assert disagreements(capture, told) == []


def test_the_rest_agrees(recorded: tuple[Capture, truth.Truth]) -> None:
    slots_agree(*recorded)
    backing_agrees(*recorded)
    vtcr_agrees(*recorded)


def test_no_check_fires(recorded: tuple[Capture, truth.Truth]) -> None:
    assert run_checks(recorded[0]) == []


def test_it_names_its_kernel(recorded: tuple[Capture, truth.Truth]) -> None:
    capture, told = recorded
    assert told.boot is not None
    assert capture.host.release == told.boot.release
    assert capture.host.build_id
    assert "inspector capture" in capture.command
