"""What is fed to what.

A target is a function of bytes.  The errors it may raise are the product's own, which become one sentence; everything
else that leaves it is a failure, and so are an input that takes longer than `SECONDS` and one that takes more than
`MEGABYTES`.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import socket
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from inspector.findings import InspectorError
from tests.symbols import synth
from tests.symbols.build import DATA, EXPORTS, FUNCTIONS, types
from tests.symbols.compiled import compile_shapes

REPO = Path(__file__).resolve().parents[2]
SECONDS = 10
MEGABYTES = 2048

CAPTURES = REPO / "fixtures/captures"
"""Recorded from real kernels."""


@dataclass(frozen=True)
class Target:
    """``run`` is fed; ``seeds`` gives small good inputs by name; ``allowed`` are the errors that are answers."""

    name: str
    run: Callable[[bytes], object]
    seeds: Callable[[], dict[str, bytes]]
    allowed: tuple[type[BaseException], ...] = (InspectorError,)


TARGETS: dict[str, Target] = {}


def target(
    name: str, seeds: Callable[[], dict[str, bytes]], *more: type[BaseException]
) -> Callable[[Callable[[bytes], object]], Callable[[bytes], object]]:
    """Register the decorated function; ``more`` errors are answers too, beside the product's."""

    def register(run: Callable[[bytes], object]) -> Callable[[bytes], object]:
        TARGETS[name] = Target(name, run, seeds, (InspectorError, *more))
        return run

    return register


def feed(one: Target, data: bytes) -> bool:
    """Run ``one`` on ``data``; whether it took it.  Raises what must not leave a parser."""
    try:
        one.run(data)
    except one.allowed:
        return False
    return True


@contextlib.contextmanager
def as_file(data: bytes, suffix: str) -> Iterator[Path]:
    """``data`` as a file, in memory where there is such a place."""
    shm = Path("/dev/shm")
    with tempfile.NamedTemporaryFile(suffix=suffix, dir=shm if shm.is_dir() else None) as file:
        file.write(data)
        file.flush()
        yield Path(file.name)


def command(*arguments: str) -> int:
    """A command line with its output thrown away; raises what it would call an internal error."""
    from inspector.cli import run

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return run(["--debug", *arguments])


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "replace")


# --- captures ---


def captures() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(CAPTURES.glob("*.s2cap"))}


@target("capture-file", captures)
def _capture(data: bytes) -> object:
    from inspector.capture.file import load

    with as_file(data, ".s2cap") as path:
        return load(str(path))


def _repacked(capture: Path, header: bytes | None = None, other: bytes | None = None) -> bytes:
    """A capture with another header, or with other bytes in all of its binary members, stored unpacked."""
    out = io.BytesIO()
    with zipfile.ZipFile(capture) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "header.json":
                data = data if header is None else header
            elif other is not None:
                data = (other + data)[: len(data)] if len(other) < len(data) else other
            new.writestr(name, data)
    return out.getvalue()


SMALL = CAPTURES / "6.1-cortex-a76.s2cap"


def headers() -> dict[str, bytes]:
    with zipfile.ZipFile(SMALL) as file:
        return {"header": file.read("header.json")}


@target("capture-header", headers)
def _header(data: bytes) -> object:
    """The header alone is mutated: a zip's checksums would hide it behind themselves."""
    return _capture(_repacked(SMALL, header=data))


@target("capture-commands", headers)
def _capture_commands(data: bytes) -> object:
    """What loads is also judged, compared and shown."""
    with as_file(_repacked(SMALL, header=data), ".s2cap") as path:
        for words in (("vms",), ("check", "--json"), ("diff",), ("dump", "--tree"), ("memslots",), ("registers",)):
            command("--from", str(path), *words)
    return None


def tables() -> dict[str, bytes]:
    with zipfile.ZipFile(SMALL) as file:
        return {"pages": file.read("pages.bin")[:8192]}


@target("capture-tables", tables)
def _capture_tables(data: bytes) -> object:
    """Other bytes in the table pages (and, behind them, in the index and the backing)."""
    with as_file(_repacked(SMALL, other=data), ".s2cap") as path:
        for words in (("check",), ("diff", "--json"), ("dump", "--tree", "--json"), ("walk", "0x40001000")):
            command("--from", str(path), *words)
    return None


# --- symbols ---


@cache
def elves() -> dict[str, bytes]:
    """A small AArch64 ELF with DWARF, made by the cross compiler."""
    with tempfile.TemporaryDirectory() as folder:
        return {"gcc": compile_shapes(Path(folder), "-gdwarf-5").read_bytes()}


@target("elf", elves)
def _elf(data: bytes) -> object:
    from inspector.symbols.elf import Elf
    from inspector.symbols.table import SymbolTable

    with as_file(data, ".elf") as path, Elf(path) as elf:
        return SymbolTable.build(elf.symbols()), elf.build_id(), elf.flatten(0xFFFF_8000_8000_0000)


@target("dwarf", elves)
def _dwarf(data: bytes) -> object:
    """A vmlinux without BTF, from its sections to its types."""
    from inspector.symbols.elf import Elf
    from inspector.symbols.opening import read_vmlinux

    with as_file(data, ".elf") as path, Elf(path) as elf:
        return read_vmlinux(elf)


def _debug_info() -> tuple[int, int]:
    """Where .debug_info lies in the ELF of `elves`."""
    from elftools.elf.elffile import ELFFile

    section = ELFFile(io.BytesIO(elves()["gcc"])).get_section_by_name(".debug_info")
    assert section is not None
    return section["sh_offset"], section["sh_size"]


def infos() -> dict[str, bytes]:
    start, size = _debug_info()
    return {"gcc": elves()["gcc"][start : start + size]}


@target("dwarf-info", infos)
def _dwarf_info(data: bytes) -> object:
    """Other bytes in .debug_info alone: most of a damaged ELF file is refused before its types are looked at."""
    start, size = _debug_info()
    whole = elves()["gcc"]
    return _dwarf(whole[:start] + data[:size].ljust(size, b"\0") + whole[start + size :])


def btfs() -> dict[str, bytes]:
    from inspector.symbols import btf
    from inspector.symbols.btfwrite import BtfWriter, MemberSpec

    writer = BtfWriter()
    number = writer.integer("unsigned int", 4)
    array = writer.array(number, 3)
    inner = writer.compound(btf.UNION, "", 12, [MemberSpec("x", number, 0), MemberSpec("y", array, 0)])
    pointer = writer.reference(btf.PTR, 6)
    writer.enumeration("kind", 4, [("ONE", 1), ("TWO", 2)], signed=False)
    fields = [MemberSpec("next", pointer, 0), MemberSpec("u", inner, 64), MemberSpec("bits", number, 160, 3)]
    writer.compound(btf.STRUCT, "kvm", 24, fields)
    return {"written": writer.blob()}


def _btf_errors() -> tuple[type[BaseException], ...]:
    from inspector.symbols.btf import BadBtf

    return (BadBtf,)


@target("btf", btfs, *_btf_errors())
def _btf(data: bytes) -> object:
    from inspector.symbols.btf import Btf

    known = Btf(data)
    for name in known.struct_names()[:50]:
        known.definitions(name)
    return known.member("kvm", "u.y"), known.enumerator("kind", "TWO")


@cache
def images() -> dict[str, bytes]:
    plain = bytes(synth.image([*FUNCTIONS, *DATA], EXPORTS, types(), "6.12").bytes)
    return {"plain": plain, "gzip": synth.packed_gzip(plain), "zboot": synth.zboot(synth.packed_gzip(plain), b"gzip")}


@target("image", images)
def _image(data: bytes) -> object:
    from inspector.symbols.image import open_image
    from inspector.symbols.opening import read_image

    with as_file(data, ".img") as path:
        return read_image(open_image(path))


def _no_kallsyms() -> tuple[type[BaseException], ...]:
    from inspector.symbols.kallsyms import NoKallsyms

    return (NoKallsyms,)


def kallsyms() -> dict[str, bytes]:
    found = {}
    for layout in ("6.1", "6.12", "7.3"):
        data = synth.Data()
        synth.kallsyms(data, [*FUNCTIONS, *DATA], layout, synth.LINK)
        found[layout] = bytes(data.bytes)
    return found


@target("kallsyms", kallsyms, *_no_kallsyms())
def _kallsyms(data: bytes) -> object:
    from inspector.symbols.kallsyms import decode_kallsyms

    return decode_kallsyms(data)


# --- what QEMU, its stub and gdb say ---


class _Pipe:
    """An address whose connection has already said everything."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def connect(self, timeout: float) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(timeout)
        theirs.sendall(self._data[:65536])
        # Another thread need not be there: what we send fits the kernel's buffer, and is read by nobody.
        theirs.shutdown(socket.SHUT_WR)
        self._theirs = theirs
        return ours


def packets() -> dict[str, bytes]:
    def framed(*payloads: bytes) -> bytes:
        return b"".join(b"+$" + p + b"#%02x" % (sum(p) & 0xFF) for p in payloads)

    xml = b"l<target><architecture>aarch64</architecture></target>"
    return {"attach": framed(b"T02thread:p01.01;", b"PacketSize=1000", xml, b"O" + b"VM status".hex().encode(), b"OK")}


@target("rsp", packets)
def _rsp(data: bytes) -> object:
    from inspector.target.qemu import parse_architecture
    from inspector.target.rsp import RspClient

    pipe = _Pipe(data)
    with RspClient(pipe, 5.0) as client:  # type: ignore[arg-type]
        client.request(b"qSupported:multiprocess+")
        description = client.read_object("features", "target.xml")
        return parse_architecture(description.decode(errors="replace")), client.monitor("info status")


def records() -> dict[str, bytes]:
    return {
        "done": b'12^done,threads=[{id="1",target-id="Thread 1.1",details="CPU#0 [running]",state="stopped"}]',
        "values": b'3^done,register-values=[{number="33",value="0xffff800008000000"}]',
        "stream": b'~"line \\"quoted\\"\\n"',
        "stopped": b'*stopped,reason="signal-received",signal-name="SIGINT",thread-id="1",stopped-threads="all"',
    }


@target("mi", records)
def _mi(data: bytes) -> object:
    from inspector.target.mi import parse_record

    return [parse_record(line) for line in data.split(b"\n")]


def qemu_texts() -> dict[str, bytes]:
    return {
        "mtree": b'FlatView #0\n AS "memory", root: system\n  0000000040000000-000000004fffffff (prio 0, ram): r @0\n',
        "status": b"VM status: paused (prelaunch)\n7.2.22Debian\nHost virtual address for 0x40000000 (r) is 0x7f0000",
    }


@target("qemu-texts", qemu_texts)
def _qemu_texts(data: bytes) -> object:
    from inspector.target import qemu

    text = text_of(data)
    ram = qemu.system_ram(qemu.parse_flat_views(text))
    version = qemu.version_tuple(qemu.parse_version(text))
    return qemu.impossible_ram(ram), version, qemu.parse_status(text), qemu.parse_gpa2hva(text)


# --- what people write ---


_VALUES = {"prot": "RW", "mem": "normal", "flags": "shared+fault", "page": "last", "race": "set:0x400"}
_VALUES |= {"pa": "0x80000000", "cache": "4", "level": "2", "entry": "0x80000003"}


def scripts() -> dict[str, bytes]:
    """Each operation with all of its words, after a map that it finds, and each generation with each granule."""
    from inspector.generations import GENERATIONS
    from inspector.model.operations import FAULT_WORDS, OPERATIONS

    found = {}
    for name, (places, words) in OPERATIONS.items():
        start = "hyp_init\nhyp_map 0 4M" if name.startswith("hyp") else "init\nmap 0 4M"
        line = " ".join((name, *("0x200000" for _ in places), *(f"{word}={_VALUES.get(word, 1)}" for word in words)))
        faults = " ".join(f"{word}={_VALUES.get(word, 1)}" for word in FAULT_WORDS)
        text = f"machine generation=7.3 ipa=40\n{start} pa=0x80000000 prot=RW\n{line}\n"
        found[name] = text.encode()
        found[f"{name}-faults"] = f"{text}{line} {faults}\n".encode()
    for generation in GENERATIONS:
        setups = (f"machine generation={generation} granule={granule} force_pte=1" for granule in ("4k", "16k", "64k"))
        lines = "init\nmap 0 64K pa=0x80000000 prot=RWX\ndestroy"
        found[f"setups-{generation}"] = "".join(f"{setup}\n{lines}\n" for setup in setups).encode()
    return found


@target("model-script", scripts)
def _script(data: bytes) -> object:
    from inspector.model import run_script

    return list(run_script(text_of(data), most=1 << 22))


def numerals() -> dict[str, bytes]:
    return {"hex": b"0x40001000", "sized": b"2M", "decimal": b"12"}


@target("numbers", numerals)
def _numbers(data: bytes) -> object:
    from inspector import numbers

    return numbers.parse_number(text_of(data), "number")


def words() -> dict[str, bytes]:
    return {
        "decode": b"decode\0--level\x003\0--fwb\x000x0040000048123fdb",
        "register": b"decode\0--register\0vtcr_el2\x000x80023558",
        "walk": b"walk\x000x40001000",
        "dump": b"dump\0--range\x000x40000000+2M\0--filter\0w,!x",
        "reverse": b"reverse\x000x48000000",
        "connect": b"--connect\0localhost:1234x\0vms",
    }


@target("command-line", words)
def _command_line(data: bytes) -> object:
    """Words of a command line, separated by NUL; no word may name a file to be written, or a machine."""
    given = [word for word in text_of(data).split("\0") if word]
    if {"capture", "--connect", "--gdb"} & set(given) or any(word.startswith("-") and "c" in word for word in given):
        given = ["decode", *given[:1]]
    return command("--from", str(SMALL), *given)


# --- traces ---


def stories() -> dict[str, bytes]:
    """Traces by hand: ``cpu=LANE event``, the lane left out where it is 0."""
    return {path.stem: path.read_bytes() for path in sorted((REPO / "tests/protocol/contexts").glob("*.trace"))}


@target("trace-events", stories)
def _trace_events(data: bytes) -> object:
    """Events behind their envelopes and checksums: judged, explained, and searched for an entry's life."""
    from inspector.trace.file import MAGIC, block

    first = (REPO / "tests/protocol/contexts/vm.trace").read_text()
    lines = [line for line in (first + text_of(data)).split("\n") if line and not line.startswith("#")]
    told = []
    for number, line in enumerate(lines):
        lane, _, event = line.partition(" ") if line.startswith("cpu=") else ("cpu=0", "", line)
        told.append(f"@{number} {lane} source=plugin {event} ;{number};")
    header = {"generation": "6.12", "page_shift": 12, "release": "6.12.1", "initialising": ["alle1"]}
    made = MAGIC + block(json.dumps(header)) + block("\n".join(told))
    with as_file(made, ".s2trace") as path:
        codes = [command("replay", str(path), *words) for words in ((), ("--json",), ("--explain", "2"))]
        codes += [command("replay", str(path), *words) for words in (("--until", "3"), ("--entry", "0x80000000"))]
    if any(code not in (0, 1) for code in codes):
        raise InspectorError("refused")
    return None


@target("trace-file", lambda: {"none": _a_trace()})
def _trace_file(data: bytes) -> object:
    """Whatever is said to be a trace."""
    from inspector.trace.file import Trace

    with as_file(data, ".s2trace") as path:
        return list(Trace(path).events())


def _a_trace() -> bytes:
    from inspector.trace.file import MAGIC, block

    return MAGIC + block('{"generation": "6.12", "page_shift": 12}') + block("@0 cpu=0 source=plugin ret value=0 ;0;")


# --- the console of the exerciser ---


def consoles() -> dict[str, bytes]:
    lines = gzip.decompress((CAPTURES / "6.1-cortex-a76.truth.gz").read_bytes()).splitlines()
    return {"truth": b"\n".join(lines[:40])}


@target("console", consoles, ValueError)
def _console(data: bytes) -> object:
    """The tests' own oracle: what it cannot read must be refused, whatever the error's name."""
    from fixtures import console

    return [console.parse(line) for line in data.splitlines(keepends=True)]
