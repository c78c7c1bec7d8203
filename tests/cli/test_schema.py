"""The JSON contract: the derived files, the validator, and the encoder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from inspector.report import schema
from inspector.report.document import Record, encoded, rows
from tests.check.build import good_world
from tests.cli.schema import errors
from tests.cli.test_cli import invoke, stored


def test_the_files_in_docs_are_those_that_the_classes_give() -> None:
    """Mend with ``python -m inspector.report.schema``."""
    for path, content in schema.files().items():
        assert path.read_text(encoding="utf-8") == content, path.name


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(schema.schema())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.update(schema=1),
        lambda d: d.update(command="vm"),
        lambda d: d.pop("tool"),
        lambda d: d.pop("command"),
        lambda d: d.update(extra=1),
        lambda d: d["vms"][0].update(pid="7"),
        lambda d: d["vms"][0].pop("pid"),
        lambda d: d["vms"][0]["mmus"][0].update(pgd_phys="1234"),
        lambda d: d["vms"][0]["mmus"][0]["geometry"].update(lpa2=0),
        lambda d: d["vms"][0]["mmus"][0]["vtcr"].update(value="0x1"),
        lambda d: d["vms"][0]["mmus"][0].update(kind="other"),
    ],
)
def test_the_validator_can_fail(tmp_path: Any, spoil: Callable[[Any], object]) -> None:
    document = json.loads(invoke("--from", stored(tmp_path / "x", good_world()), "vms", "--json").stdout)
    assert errors(document) == []
    spoil(document)
    assert errors(document)


# --- the encoder, against the standard library's ---


class Inner(Record, frozen=True):
    name: str
    numbers: Any
    maybe: int | None


class Outer(Record, frozen=True):
    before: Any
    rows: Any
    after: str


TEXT = st.text(st.characters(exclude_categories=()), max_size=8)
INNER = st.builds(Inner, TEXT, st.lists(st.integers(-(1 << 70), 1 << 70), max_size=3), st.none() | st.integers())


def lazily(value: Any) -> Any:
    """The same document, with iterators in place of arrays."""
    if isinstance(value, Inner):
        return Inner(value.name, rows(value.numbers), value.maybe)
    return Outer(value.before, rows(map(lazily, value.rows)), value.after)


@given(st.builds(Outer, st.none() | INNER, st.lists(INNER, max_size=5), TEXT))
def test_the_encoder_writes_what_the_standard_library_writes(document: Outer) -> None:
    expected = json.dumps(msgspec.to_builtins(document), indent=2)
    assert b"".join(encoded(document)).decode("ascii") == expected
    assert b"".join(encoded(lazily(document))).decode("ascii") == expected


def test_long_arrays_are_written_as_they_are_made() -> None:
    made = []

    def numbers() -> Iterator[Inner]:
        for number in range(1, 5001):
            made.append(number)
            yield Inner(str(number), [], None)

    pieces = encoded(Outer(0, rows(numbers()), "end"))
    seen = b""
    while b'"1"' not in seen:
        seen += next(pieces)
    assert 0 < len(made) < 1000
    found = json.loads(seen + b"".join(pieces))
    assert [row["name"] for row in found["rows"]] == [str(n) for n in range(1, 5001)]
