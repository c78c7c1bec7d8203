"""What every JSON document is made of: records with typed members, the envelope, and the encoder.

The classes are the contract: `inspector.report.schema` derives docs/schema.json and the page beside it from them.
Addresses, raw descriptors and registers are ``"0x..."`` strings (a JSON number above 2**53 is not safe in every
reader); counts, sizes, levels, indexes and VMIDs are numbers; what is not known is ``null``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Annotated, Any, TypeVar, cast, get_args, get_type_hints

import msgspec
from msgspec import UNSET, Meta, Struct

import inspector
from inspector.capture.view import TableView, View
from inspector.report.format import raw

SCHEMA = 2
"""Version of the documents (capture files have one of their own: `inspector.snapshot`)."""

T = TypeVar("T")
R = TypeVar("R", bound="Record")

Hex = Annotated[str, Meta(pattern="^0x[0-9a-f]+$", title="hex")]
Raw = Annotated[str, Meta(pattern="^0x[0-9a-f]{16}$", title="raw")]
Level = Annotated[int, Meta(ge=-1, le=3, title="level")]
Number = Annotated[int, Meta(ge=0)]
Bytes = Annotated[int, Meta(ge=0, title="bytes")]


def hexed(value: int) -> str:
    """An address, a mask or a value."""
    return f"{value:#x}"


def hex_or_null(value: int | None) -> str | None:
    """`hexed`, where the value is known."""
    return None if value is None else f"{value:#x}"


class Record(Struct, frozen=True, forbid_unknown_fields=True):
    """An object of a document: exactly these members, in this order."""


def _titles(hint: Any) -> Iterator[str | None]:
    """The titles in an annotation: `Hex`, also where it may be ``null`` or has a description."""
    yield from (getattr(meta, "title", None) for meta in getattr(hint, "__metadata__", ()))
    for part in get_args(hint):
        yield from _titles(part)


@cache
def _written(kind: type[Record]) -> tuple[tuple[str, Callable[[int], str] | None], ...]:
    """Every member, and how it is written where it is an address or a descriptor."""
    hints = get_type_hints(kind, include_extras=True)
    forms = {name: set(_titles(hints[name])) for name in kind.__struct_fields__}
    return tuple((name, hexed if "hex" in of else raw if "raw" in of else None) for name, of in forms.items())


def record(kind: type[R], source: object, **others: Any) -> R:
    """A record of what ``source`` has under the members' names, each in its form; ``others`` as they are given."""
    for name, form in _written(kind):
        if name not in others:
            value = getattr(source, name)
            others[name] = value if value is None or form is None else form(value)
    return kind(**others)


class Document(Record, frozen=True, kw_only=True):
    """What every document begins with."""

    schema: int = SCHEMA
    tool: str = f"kvm-stage2-inspector {inspector.__version__}"
    command: str


class TableName(Record, frozen=True):
    """Which table something is in: a VM, its VMM, and one of its MMUs by ``regime`` and root."""

    vm: Annotated[str | None, Meta(description="`null`: a table of the host's own.")]
    pid: Number | None
    vmm: str | None
    regime: str
    root: Hex


def table_name(view: View) -> dict[str, Any]:
    """The members of `TableName`."""
    name, pid, command = (view.vm.name, view.vm.pid, view.vm.command) if isinstance(view, TableView) else (None,) * 3
    return {"vm": name, "pid": pid, "vmm": command, "regime": view.regime, "root": hexed(view.root_pa)}


# --- encoding ---

_BATCH = 512
"""Rows of a streamed array that are encoded together."""


def rows(found: Iterable[T]) -> Sequence[T]:
    """An array of a document that is made row by row while it is written: it can be written once."""
    return cast("Sequence[T]", iter(found))


def _streams(value: object) -> bool:
    return isinstance(value, Struct) and any(isinstance(getattr(value, n), Iterator) for n in value.__struct_fields__)


def encoded(value: object, margin: bytes = b"") -> Iterator[bytes]:
    """The JSON of a document in ASCII, indented by 2, piece by piece (see `rows`); ``margin`` is the indentation."""
    inner = margin + b"  "
    if isinstance(value, Iterator):
        opening = b"[\n"
        while batch := list(islice(value, _BATCH)):
            if _streams(batch[0]):
                for row in batch:
                    yield opening + inner
                    yield from encoded(row, inner)
                    opening = b",\n"
            else:
                yield opening + _whole(batch, margin)[2 : -len(margin) - 2]
                opening = b",\n"
        yield b"[]" if opening == b"[\n" else b"\n" + margin + b"]"
    elif isinstance(value, Struct) and _streams(value):
        opening = b"{\n"
        for name in value.__struct_fields__:
            if (member := getattr(value, name)) is not UNSET:
                yield opening + inner + f'"{name}": '.encode()
                yield from encoded(member, inner)
                opening = b",\n"
        yield b"\n" + margin + b"}"
    else:
        yield _whole(value, margin)


def _whole(value: object, margin: bytes) -> bytes:
    try:
        found = msgspec.json.encode(value)
        plain = found.isascii() and b"\x7f" not in found
    except UnicodeEncodeError:  # half of a surrogate pair, from a capture file's header
        plain = False
    if not plain:  # msgspec cannot escape what a terminal would obey
        return json.dumps(msgspec.to_builtins(value), indent=2).encode().replace(b"\n", b"\n" + margin)
    return msgspec.json.format(found, indent=2).replace(b"\n", b"\n" + margin)
