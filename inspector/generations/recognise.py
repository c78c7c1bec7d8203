"""Which generation the kernel at hand is of, and what its tables' entries mean."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from inspector.codec import Format, Regime, has_e2h
from inspector.findings import BadInput
from inspector.generations.forms import ProtLayout
from inspector.generations.record import Generation
from inspector.generations.registry import GENERATIONS, number
from inspector.snapshot import Host, Mmu, MmuKind, Mode, OwnKind


@dataclass(frozen=True)
class KernelCode:
    """The page-table code of a kernel at hand.

    ``behaviours`` is the generation it is of, put right by what this very build is known to do.  ``how`` is what it
    was recognised by, in words; ``assumed`` is true when only its release says so, ``chosen`` when somebody asked for
    that generation whatever the kernel.  ``series`` is the kernel's own release series, which may be one that nobody
    read (a 6.9 behaves as 6.12 as far as we can tell).
    """

    behaviours: Generation
    how: str
    assumed: bool
    series: str | None
    chosen: bool = False

    @property
    def label(self) -> str:
        return self.behaviours.label

    @property
    def as_read(self) -> bool:
        """True when the kernel is of the very series that was read for this generation."""
        return self.series == self.label

    @property
    def cross_checked(self) -> bool:
        """The model was compared with the compiled code of a kernel of this very series."""
        return self.behaviours.cross_checked and (self.chosen or self.as_read)

    @property
    def standing(self) -> str:
        """How far the model may be trusted, in words."""
        return self.behaviours.standing if self.chosen or self.as_read else "not cross-checked"

    @property
    def text(self) -> str:
        """``6.12 (recognised by: …), cross-checked against the kernel's own code``."""
        if self.chosen:
            known = "as asked for"
        else:
            known = f"{'assumed: ' if self.assumed else 'recognised by: '}{self.how}"
            if self.series is not None and not self.as_read and not self.assumed:
                known += f"; the kernel is a {self.series}"
        return f"{self.label} ({known}), {self.standing}"

    def format(self, host: Host, mmu: Mmu) -> Format:
        """What the bits of ``mmu``'s descriptors mean on ``host``."""
        nofwb = (mmu.pgt_flags or 0) & self.behaviours.pgt_flags.bit("NOFWB")
        return self.behaviours.format(
            Regime.STAGE2,
            fwb=bool(host.features.get("fwb")) and not nofwb,
            xnx=bool(host.features.get("xnx")),
            shadow=mmu.kind is MmuKind.SHADOW,
            protected=host.mode is Mode.PROTECTED,
        )

    def own_format(self, host: Host, kind: OwnKind) -> Format:
        """What the bits of a table of the host's own mean: whose stage 1 at EL2 has PXN and UXN goes by HCR_EL2.E2H."""
        protected = host.mode is Mode.PROTECTED
        if kind is OwnKind.HOST:
            nofwb = self.behaviours.pgt_flags.bit("NOFWB")  # KVM_HOST_S2_FLAGS has it where it exists (kernel.md 12.1)
            fwb, xnx = bool(host.features.get("fwb")) and not nofwb, bool(host.features.get("xnx"))
            return self.behaviours.format(Regime.STAGE2, fwb=fwb, xnx=xnx, protected=protected)
        hvhe = any(has_e2h(cpu.registers) for cpu in host.cpus)
        mair = next((cpu.registers["MAIR_EL2"] for cpu in host.cpus if cpu.registers.get("MAIR_EL2")), 0)
        return replace(self.behaviours.format(Regime.HYP_STAGE1, hvhe=hvhe, protected=protected), mair=mair)


def series_of(release: str) -> str | None:
    """``6.12`` of ``6.12.107+deb13-cloud-arm64``; ``None`` when the text does not begin so."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return f"{int(found[1])}.{int(found[2])}" if found else None


def _nearest(candidates: Sequence[Generation], series: str | None) -> Generation:
    """The newest candidate that is no newer than ``series`` (unknown: the newest of all), else the oldest."""
    older = [each for each in candidates if series is None or number(each.label) <= number(series)]
    return older[-1] if older else candidates[0]


def recognise(release: str, traits: Mapping[str, bool]) -> KernelCode:
    """The code of a kernel: from its types and symbols, else from its release, and then assumed."""
    series = series_of(release)
    matching = [each for each in GENERATIONS.values() if each.matches(traits)]
    if matching:
        found = _nearest(matching, series)
        if not traits.get("prot_normal_nc", True):
            # 6.8 has signed levels, and not yet the memory type that 6.9 brought.
            found = replace(found, prot_layout=ProtLayout.SINGLE_X)
        return KernelCode(found, found.how, False, series)
    how = f"its release is {series}, and its types are not known"
    if series is None:
        how = "neither its types nor its release are known: the newest"
    return KernelCode(_nearest(list(GENERATIONS.values()), series), how, True, series)


def code_of(host: Host, label: str | None = None) -> KernelCode:
    """The code of ``host``'s kernel, or the generation ``label`` whatever the kernel.

    Raises `BadInput` for a label that does not exist.
    """
    if label is None:
        return recognise(host.release, host.traits)
    if label not in GENERATIONS:
        raise BadInput(f"there is no generation '{label}': known are {', '.join(GENERATIONS)}")
    return KernelCode(GENERATIONS[label], "asked for", False, series_of(host.release), True)


def software_bits_used(host: Host, mmu: Mmu) -> bool:
    """True when bits [58:55] of a leaf of ``mmu`` may be set (pKVM page states, nested level hints)."""
    return host.mode is Mode.PROTECTED or mmu.kind is MmuKind.SHADOW
