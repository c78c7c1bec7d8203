"""The capture file: one zip with a versioned JSON header and the raw table pages, written atomically.

Members, all deflated and CRC-checked by the zip format itself:

``header.json``
    ``{"format": "kvm-stage2-inspector capture", "schema": N, "capture": {...}}``: every dataclass of
    `inspector.snapshot` as an object with the field names of the dataclass.  Integers below 2**32 are JSON
    numbers, larger ones are ``"0x..."`` strings (a JSON number above 2**53 is not safe in every reader); bytes are
    hex digits.
    The tables of the host itself are ``own``: EL2's stage 1 and a protected host's stage 2, with their roots, the parts
    of the kernel's image at EL2 (``areas``) and pKVM's page states (``states``, runs of pages that are not just the
    host's); their pages are among the others.  A file made before there were any has no ``own``.
    ``pages`` and ``backing`` are not in it; ``page_info`` and ``unreadable`` are, keyed by ``"0x..."`` addresses.
``pages.bin``
    The distinct table pages, one after the other.
``backing.bin``
    What backs the memory slots, in the order of the slots: a slot's ``backing`` in the header is ``[first, count]`` of
    the records here, each a `inspector.backing.ROW` (a VMM with scattered pages has a run a page).
``pages.idx``
    One little-endian record ``<QQI`` a table page, ascending by address: physical address, offset in ``pages.bin``,
    length in bytes.  Pages of equal content share an offset.
``look1.bin``, ``look1.idx`` …
    The same two of the pages of each of the capture's ``looks``, whose other fields the header holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import lzma
import math
import os
import re
import stat
import struct
import types
import typing
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from inspector.backing import ROW, STATES, BackingRuns
from inspector.budget import DEFAULT, Budget
from inspector.codec import Geometry
from inspector.codec.geometry import MAX_ROOT_PAGES
from inspector.codec.registers import PS_BITS
from inspector.findings import BadInput
from inspector.snapshot import SCHEMA, Capture, Memslot, OwnKind, OwnTable, PkvmMapping

FORMAT = "kvm-stage2-inspector capture"
HEADER, PAGES, INDEX, BACKING = "header.json", "pages.bin", "pages.idx", "backing.bin"
_RECORD = struct.Struct("<QQI")
_PLACE = np.dtype([("pa", "<u8"), ("offset", "<u8"), ("length", "<u4")])
_JSON_NUMBER_LIMIT = 1 << 32

#: Bytes of memory that what is read takes, by what the file holds of it: a byte of JSON (``[],`` makes a list of 56
#: and a reference), a record of the index (a key, a slice and their places), a record of backing (a row, and what
#: `check` makes of it).
_PER_HEADER_BYTE, _PER_PAGE, _PER_RUN = 24, 256, 4 * ROW.itemsize
#: A byte of a table page, wherever the index names it: a walk lays pages that share their bytes end to end, and an
#: entry of eight bytes becomes a row of columns.
_PER_TABLE_BYTE = 6
#: A page that the hypervisor has its own state of: the rules look it up by its address.
_PER_OWN_PAGE = 256
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
#: Of deflate.  On table pages it packs as well as the default of 6 and takes a sixth of the time: 0.9 s in place of
#: 5.5 s for the 128 MiB of a guest of 64 GiB in pages of 4K.
_LEVEL = 4
_HEX = re.compile(r"-?0x[0-9a-f]+")

#: What ``zipfile`` and its decompressors raise on damaged data (found by flipping bytes; none is documented as a set).
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    RecursionError,
    RuntimeError,
    MemoryError,
    ValueError,
    KeyError,
    OSError,
)


class _Malformed(ValueError):
    """The header's JSON does not have the shape of a capture; the message names the field."""


# --- dataclasses to JSON and back, driven by the dataclasses' own annotations ---


def _int_to_json(value: int) -> int | str:
    return value if -_JSON_NUMBER_LIMIT < value < _JSON_NUMBER_LIMIT else hex(value)


def _to_json(value: Any) -> Any:
    if isinstance(value, bool) or value is None or isinstance(value, str | float):
        return value
    if isinstance(value, int):
        return _int_to_json(value)
    if isinstance(value, Mapping):
        return {hex(k) if isinstance(k, int) else k: _to_json(v) for k, v in sorted(value.items())}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, tuple | list):
        return [_to_json(v) for v in value]
    return {f.name: _to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}


def _take_backing(header: dict[str, Any], capture: Capture) -> bytes:
    """Replace each slot's backing in ``header`` by where its records are, and return the records."""
    parts, first = [], 0
    for vm, vm_header in zip(capture.vms, header["vms"], strict=True):
        for slot, slot_header in zip(vm.memslots, vm_header["memslots"], strict=True):
            runs = BackingRuns.of(slot.backing).rows
            parts.append(runs.tobytes())
            slot_header["backing"] = [first, len(runs)]
            first += len(runs)
    return b"".join(parts)


def _put_backing(capture: Capture, runs: NDArray[np.void]) -> Capture:
    """Read the records that each slot's ``backing`` (so far a pair of numbers) names; no record is two slots'."""
    spans: list[Any] = [slot.backing for vm in capture.vms for slot in vm.memslots]
    if sum(count for _, count in spans if count > 0) > len(runs):
        raise _Malformed("what backs its slots is more than the file holds")
    return dataclasses.replace(
        capture,
        vms=tuple(
            dataclasses.replace(
                vm, memslots=tuple(dataclasses.replace(s, backing=_runs(s.backing, runs)) for s in vm.memslots)
            )
            for vm in capture.vms
        ),
    )


def _runs(span: Any, runs: NDArray[np.void]) -> BackingRuns:
    first, count = span
    if first < 0 or count < 0 or first + count > len(runs):
        raise _Malformed("what backs a slot lies outside of the file")
    some = runs[first : first + count]
    if count and (int(some["state"].max()) >= len(STATES) or int(some["flags"].max()) > 15):
        raise _Malformed("what backs a slot has an unknown state")
    return BackingRuns(some)


def _int_from_json(value: Any, where: str) -> int:
    if isinstance(value, str) and _HEX.fullmatch(value):
        value = int(value, 16)
    if isinstance(value, int) and not isinstance(value, bool):
        if -1 << 63 <= value < 1 << 64:
            return value
        raise _Malformed(f"{where} has more than 64 bits")
    raise _Malformed(f"{where} is not a number")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _object_from_json(cls: type, value: Any, where: str, given: Mapping[str, Any]) -> Any:
    if not isinstance(value, dict):
        raise _Malformed(f"{where} is not an object")
    hints = _hints(cls)
    arguments: dict[str, Any] = dict(given)
    for field in dataclasses.fields(cls):
        if field.name in given:
            continue
        if cls is Memslot and field.name == "backing":
            pair = tuple[int, int]
            arguments["backing"] = _from_json(pair, value.get("backing"), f"{where}.backing")
            continue
        if field.name in value:
            arguments[field.name] = _from_json(hints[field.name], value[field.name], f"{where}.{field.name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise _Malformed(f"{where}.{field.name} is missing")
    made = cls(**arguments)
    if isinstance(made, Geometry) and not _possible(made):
        raise _Malformed(f"{where} is not the shape of a translation table")
    if isinstance(made, PkvmMapping) and not all(0 <= each < 1 << 52 for each in dataclasses.astuple(made)):
        raise _Malformed(f"{where} is no mapping of pages")
    if isinstance(made, OwnTable) and not _possible_own(made):
        raise _Malformed(f"{where} is no table that a host has")
    return made


def _spans(table: OwnTable) -> list[tuple[int, int]]:
    """Every range of pages that ``table`` speaks of."""
    return [(area.start, area.end) for area in table.areas] + [(run.start, run.end) for run in table.states or ()]


def _possible_own(table: OwnTable) -> bool:
    """Whether the numbers are what they stand for: addresses of 52 bits, ranges that go forward, page by page."""
    top, granule = 1 << 52, table.geometry.granule
    shape = table.geometry
    stage1 = Geometry.for_stage1(shape.ia_bits, shape.granule_shift, shape.pa_bits, shape.lpa2)
    return (
        (table.kind is not OwnKind.HYP or shape == stage1)
        and 0 <= table.root < top
        and (table.recorded is None or table.recorded >= 0)
        and (table.offset is None or table.offset >= 0)
        and all(0 <= start < end <= top and not (start | end) % granule for start, end in _spans(table))
        and all(0 <= one.host < 16 and 0 <= one.hyp < 16 for one in table.states or ())
        and all(one.guests is None or 0 <= one.guests < 1 << 32 for one in table.states or ())
    )


def _possible(geometry: Geometry) -> bool:
    """Whether a table of this shape can exist at all; everything that computes with a geometry relies on it."""
    return (
        geometry.granule_shift in (12, 14, 16)
        and -1 <= geometry.start_level <= 3
        and 1 <= geometry.root_pages <= MAX_ROOT_PAGES
        and geometry.granule_shift < geometry.ia_bits <= 52
        and geometry.pa_bits in PS_BITS
        and (geometry.root_pages - 1) << geometry.level_shift(geometry.start_level - 1) < 1 << 63
    )


def _scalar_from_json(kind: Any, value: Any, where: str) -> Any:
    if kind is int:
        return _int_from_json(value, where)
    if kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    elif kind is bytes:
        with contextlib.suppress(TypeError, ValueError):
            return bytes.fromhex(value)
    elif issubclass(kind, enum.StrEnum):
        with contextlib.suppress(ValueError):
            return kind(value)
    elif isinstance(value, kind):
        return value
    raise _Malformed(f"{where} is not a {kind.__name__}")


def _from_json(kind: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType or origin is typing.Union:
        if value is None:
            return None
        return _from_json(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise _Malformed(f"{where} is not a list")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise _Malformed(f"{where} does not have {len(kinds)} elements")
        return tuple(_from_json(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is not None:  # Mapping
        if not isinstance(value, dict):
            raise _Malformed(f"{where} is not an object")
        key_kind, item_kind = args
        return {
            (_int_from_json(k, where) if key_kind is int else k): _from_json(item_kind, v, f"{where}.{k}")
            for k, v in value.items()
        }
    if dataclasses.is_dataclass(kind):
        assert isinstance(kind, type)
        return _object_from_json(kind, value, where, {})
    return _scalar_from_json(kind, value, where)


# --- writing ---


def require_writable(path: str) -> None:
    """Raises `BadInput` when no capture could get this name, before one is taken.

    A device or a pipe could not: the file would take its place.
    """
    why = None
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            why = "it exists and is not a regular file"
    except FileNotFoundError:
        if not Path(os.path.realpath(path)).parent.is_dir():
            why = "there is no such directory"
    except OSError as error:
        why = error.strerror
    if why:
        raise BadInput(f"cannot write the capture to {path}: {why}")


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[typing.BinaryIO]:
    """A new file that takes ``path``'s name only when everything was written and is on disk.

    A symbolic link is followed, as by other programs.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".inspector.{os.getpid()}.part")
    try:
        with temporary.open("xb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _pack_pages(pages: Mapping[int, bytes]) -> tuple[bytes, bytes]:
    """``pages.bin`` and ``pages.idx`` of ``pages``."""
    offsets: dict[bytes, int] = {}
    blob = bytearray()
    index = bytearray()
    for pa, content in sorted(pages.items()):
        if content not in offsets:
            offsets[content] = len(blob)
            blob += content
        index += _RECORD.pack(pa, offsets[content], len(content))
    return bytes(blob), bytes(index)


def _look_members(count: int) -> list[tuple[str, str]]:
    """The names of the members that hold the pages of each look."""
    return [(f"look{number}.bin", f"look{number}.idx") for number in range(1, count + 1)]


def save(capture: Capture, path: str | os.PathLike[str]) -> None:
    """Write ``capture`` to ``path``.

    The same capture gives the same bytes.  The file appears under its name only when it is complete.
    Raises `BadInput` when it cannot be written.
    """
    bare = dataclasses.replace(
        capture,
        looks=tuple(dataclasses.replace(look, pages={}) for look in capture.looks),
        vms=tuple(
            dataclasses.replace(vm, memslots=tuple(dataclasses.replace(s, backing=()) for s in vm.memslots))
            for vm in capture.vms
        ),
    )
    fields = {f.name: _to_json(getattr(bare, f.name)) for f in dataclasses.fields(bare) if f.name != "pages"}
    backing = _take_backing(fields, capture)
    header = {"format": FORMAT, "schema": SCHEMA, "capture": fields}
    blob, index = _pack_pages(capture.pages)
    members = [(HEADER, json.dumps(header, indent=1).encode()), (PAGES, blob), (INDEX, index), (BACKING, backing)]
    for names, look in zip(_look_members(len(capture.looks)), capture.looks, strict=True):
        members += zip(names, _pack_pages(look.pages), strict=True)
    try:
        with _atomic(Path(path)) as out, zipfile.ZipFile(out, "w") as archive:
            for name, data in members:
                # A fixed date, so that equal captures are equal files.
                info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
                info.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(info, data, compresslevel=_LEVEL)
    except OSError as error:
        raise BadInput(f"cannot write the capture to {os.fspath(path)}: {error.strerror or error}") from None


# --- reading ---


def _member(archive: zipfile.ZipFile, name: str, budget: Budget, cost: int = 1) -> bytes:
    """A member, of which each byte takes ``cost`` bytes of memory: unpacked only when that is affordable.

    `zipfile` never unpacks more than the size stated, which is compared first.
    """
    info = archive.getinfo(name)
    if info.compress_type not in _METHODS:
        raise _Malformed(f"{name} is packed in a way that no capture is")
    budget.spend(info.file_size * cost, f"{name} in {archive.filename}")
    return archive.read(info)


def _unpack_pages(archive: zipfile.ZipFile, names: tuple[str, str], budget: Budget) -> dict[int, bytes]:
    """The table pages of the members ``names``, pages and index.  Two pages have all their bytes in common or none."""
    blob = _member(archive, names[0], budget)
    index = _member(archive, names[1], budget, 1 + _PER_PAGE // _RECORD.size)
    if len(index) % _RECORD.size:
        raise _Malformed("the index of the table pages is cut off")
    records = np.frombuffer(index, dtype=_PLACE)
    size = np.uint64(len(blob))
    outside = (records["offset"] > size) | (records["length"] > size - np.minimum(records["offset"], size))
    if outside.any():
        raise _Malformed(f"the table page at {records['pa'][outside][0]:#x} lies outside of the file")
    places = np.unique(records[["offset", "length"]])
    if (places["offset"][1:] < places["offset"][:-1] + places["length"][:-1]).any():
        raise _Malformed("its table pages overlap")
    total = int(records["length"].sum(dtype=np.uint64))
    budget.spend(total * _PER_TABLE_BYTE, f"the {len(records)} table pages in {archive.filename}")
    shared = {(at, length): blob[at : at + length] for at, length in places.tolist()}
    return {pa: shared[at, length] for pa, at, length in records.tolist()}


def _refuse_constant(name: str) -> typing.NoReturn:
    raise _Malformed(f"the header holds {name}")


def _header_int(digits: str) -> int:
    if len(digits) > 20:
        raise _Malformed(f"the header holds a number of {len(digits)} digits")
    return int(digits)


def _parse_header(data: bytes, path: str) -> Any:
    """The header's ``capture`` object, once format and schema are known to be ours."""
    header = json.loads(data.decode(), parse_constant=_refuse_constant, parse_int=_header_int)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _Malformed("its header is not that of a capture")
    schema = header.get("schema")
    if not isinstance(schema, int) or isinstance(schema, bool) or schema < 1:
        raise _Malformed("its schema version is not a number")
    if schema > SCHEMA:
        raise BadInput(
            f"{path} is a capture of schema {schema}, and this version of inspector reads schema {SCHEMA} and older: "
            "use the version that made it, or a newer one"
        )
    return header.get("capture")


def load(path: str | os.PathLike[str], most: int = DEFAULT) -> Capture:
    """Read a capture, whose contents may take ``most`` bytes of memory.

    Raises `BadInput` with one sentence when the file is missing, cut off, damaged, of another kind, too large or of a
    newer schema; never anything else.
    """
    name = os.fspath(path)
    budget = Budget(most)
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise BadInput(f"cannot read the capture {name}: {error.strerror or error}") from None
    try:
        with zipfile.ZipFile(path) as archive:
            body = _parse_header(_member(archive, HEADER, budget, _PER_HEADER_BYTE), name)
            pages = _unpack_pages(archive, (PAGES, INDEX), budget)
            runs = np.frombuffer(_member(archive, BACKING, budget, _PER_RUN // ROW.itemsize), dtype=ROW)
            capture: Capture = _object_from_json(Capture, body, "capture", {"pages": pages})
            if len({vm.name for vm in capture.vms}) < len(capture.vms):
                raise _Malformed("two of its VMs have one name")
            capture = _put_backing(capture, runs)
            own = sum((end - start) // t.geometry.granule for t in capture.own for start, end in _spans(t))
            budget.spend(own * _PER_OWN_PAGE, f"what {name} says of the pages of the hypervisor")
            looks = tuple(
                dataclasses.replace(look, pages=_unpack_pages(archive, names, budget))
                for look, names in zip(capture.looks, _look_members(len(capture.looks)), strict=True)
            )
            capture = dataclasses.replace(capture, looks=looks)
    except _DAMAGE as error:
        raise BadInput(
            f"{name} is not a whole capture file ({_one_line(error)}): it was cut off or damaged, take it again"
        ) from None
    return capture


def _one_line(error: BaseException) -> str:
    text = str(error).strip().strip("'\"") or type(error).__name__
    if isinstance(error, KeyError):
        text = text if "no item" in text.lower() else f"no member {text}"
    return text.splitlines()[0].rstrip(".")
