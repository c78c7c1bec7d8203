"""The host (`inspector info`) and its CPUs (`inspector registers`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from msgspec import Meta

from inspector.codec import decode_register, has_e2h, is_known
from inspector.generations import KernelCode, code_of
from inspector.report.document import Bytes, Document, Hex, Number, Raw, Record, hexed, record
from inspector.report.format import Lines, Painter, address, columns, raw, size
from inspector.report.sysregs import Fields, register_text
from inspector.snapshot import Capture, CpuState, Mode, Running


class Behaviours(Record, frozen=True):
    """Which model stands for a kernel, and how that is known."""

    generation: str
    how: Annotated[str, Meta(description="What the kernel was recognised by.")]
    assumed: Annotated[bool, Meta(description="Only the release says so.")]
    chosen: Annotated[bool, Meta(description="By `--generation`.")]
    cross_checked: Annotated[
        bool,
        Meta(
            description="Operation by operation, against the compiled code of a kernel of this very "
            "series; otherwise it is from facts only."
        ),
    ]


class HostFacts(Record, frozen=True):
    """The host kernel."""

    release: str
    banner: str
    build_id: str | None
    symbols: Annotated[str, Meta(description="Where names and types came from.")]
    kaslr_slide: Hex
    image_pa: Annotated[Sequence[Hex], Meta(description="Start and end.")]
    mode: Mode
    page_size: Bytes
    va_bits: Number
    features: Mapping[str, Number]
    traits: Mapping[str, bool]
    ram: Annotated[Sequence[Sequence[Hex]], Meta(description="Start and end of each range.")]
    memory_backend: str
    notes: Sequence[str]
    behaviours: Behaviours


class Cpu(Record, frozen=True):
    """What a CPU was executing when it was stopped."""

    index: Number
    running: Running
    symbol: str | None
    vttbr_live: Annotated[bool, Meta(description="VTTBR_EL2 names the stage-2 in force.")]
    hosts_own_stage2: Annotated[bool, Meta(description="It is the one that a protected host itself runs under.")]


class CpuRegisters(Cpu, frozen=True):
    """A CPU with its registers."""

    registers: Mapping[str, Raw]
    decoded: Annotated[Mapping[str, Fields], Meta(description="Those whose fields are known.")]


class Info(Document, frozen=True, kw_only=True):
    """`inspector info`."""

    command: Literal["info"] = "info"
    host: HostFacts
    cpus: Sequence[Cpu]
    vms: Annotated[Number, Meta(description="How many.")]
    stopped_seconds: Annotated[float, Meta(description="How long the machine stood still.")]
    made: str
    made_by: str


class RegistersDocument(Document, frozen=True, kw_only=True):
    """`inspector registers`."""

    command: Literal["registers"] = "registers"
    cpus: Sequence[CpuRegisters]


def behaviours(kernel: KernelCode) -> Behaviours:
    """Which model stands for a kernel."""
    return record(Behaviours, kernel, generation=kernel.label)


def info_document(capture: Capture) -> Info:
    """`inspector info`."""
    host = capture.host
    return Info(
        host=record(
            HostFacts,
            host,
            image_pa=tuple(map(hexed, host.image_pa)),
            features=dict(sorted(host.features.items())),
            traits=dict(sorted(host.traits.items())),
            ram=[tuple(map(hexed, ends)) for ends in host.ram],
            behaviours=behaviours(code_of(host)),
        ),
        cpus=[record(Cpu, cpu) for cpu in host.cpus],
        vms=len(capture.vms),
        stopped_seconds=capture.stopped_seconds,
        made=capture.made,
        made_by=capture.tool,
    )


def _how_read(capture: Capture) -> str:
    if capture.host.memory_backend == "core":
        return "read from a dump"
    stopped = f"machine stopped for {capture.stopped_seconds * 1000:.0f} ms"
    return f"read by {capture.host.memory_backend}, {stopped}"


def info_lines(paint: Painter, capture: Capture) -> Lines:
    """The host."""
    host = capture.host
    cpus = ", ".join(f"{cpu.index}: {_running(cpu)}" for cpu in host.cpus)
    rows = [
        ("kernel", host.release),
        ("banner", host.banner),
        ("build id", host.build_id or "unknown"),
        ("symbols", host.symbols),
        ("KASLR slide", address(host.kaslr_slide)),
        ("image", f"{address(host.image_pa[0])}-{address(host.image_pa[1])} (PA)"),
        ("mode", {Mode.NONE: "KVM is not initialised"}.get(host.mode, host.mode)),
        ("page size", size(host.page_size)),
        ("VA bits", str(host.va_bits)),
        ("features", " ".join(f"{name}={value}" for name, value in sorted(host.features.items())) or "-"),
        ("traits", " ".join(sorted(name for name, has in host.traits.items() if has)) or "-"),
        ("behaviours", code_of(host).text),
        ("RAM", ", ".join(f"{address(a)}-{address(b)} ({size(b - a)})" for a, b in host.ram)),
        ("memory", _how_read(capture)),
        ("CPUs", cpus),
        ("VMs", str(len(capture.vms))),
        ("taken", f"{capture.made} by {capture.tool}"),
    ]
    for name, value in rows:
        yield f"{paint(f'{name:11}', 'bold')}  {value}".rstrip()
    for note in host.notes:
        yield f"note: {note}"


def _running(cpu: CpuState) -> str:
    return cpu.running + (f" in {cpu.symbol}" if cpu.symbol else "")


def registers_document(capture: Capture) -> RegistersDocument:
    """`inspector registers`."""
    cpus = []
    for cpu in capture.host.cpus:
        values, vhe = dict(sorted(cpu.registers.items())), has_e2h(cpu.registers)
        cpus.append(
            record(
                CpuRegisters,
                cpu,
                registers={name: raw(value) for name, value in values.items()},
                decoded={name: decode_register(name, value, vhe) for name, value in values.items() if is_known(name)},
            )
        )
    return RegistersDocument(cpus=cpus)


def registers_lines(paint: Painter, capture: Capture) -> Lines:
    """Every captured register of every CPU, decoded where its fields are known."""
    for cpu in capture.host.cpus:
        live = "in force" if cpu.vttbr_live else "stale: no guest's stage-2 is in force"
        if cpu.hosts_own_stage2:
            live = "in force: the stage-2 that the hypervisor keeps the host itself under"
        yield paint(f"CPU {cpu.index}: {_running(cpu)}; VTTBR_EL2 is {live}", "bold")
        vhe = has_e2h(cpu.registers)
        rows = [(name, raw(value), register_text(name, value, vhe)) for name, value in sorted(cpu.registers.items())]
        yield from columns(("", "", ""), rows, indent="  ")
