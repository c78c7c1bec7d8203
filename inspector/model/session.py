"""A model under a script: what is to be built, and operations applied to it.

``Setup`` is the ``machine`` line of a script; :class:`Session` runs :class:`~inspector.model.operations.Operation`
on the model it describes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Final, NamedTuple

from inspector.codec import GRANULES, Geometry
from inspector.findings import BadInput
from inspector.generations import GENERATIONS, Generation, generation
from inspector.model.hyp import HypStage1
from inspector.model.machine import Machine
from inspector.model.operations import LAST, Operation, ScriptError, bounded
from inspector.model.pages import BoundedStore, Effort, MemoryCache, PageStore
from inspector.model.stage2 import Stage2
from inspector.numbers import parse_number

DEFAULT_GENERATION: Final = "6.12"
_BITS: Final = {"ipa": (32, 52), "pa": (32, 52), "va": (16, 52)}
"""Sizes of addresses: what ``kvm_init_stage2_mmu`` and TCR_EL2.T0SZ allow."""
_SWITCHES: Final = tuple(each.name for each in fields(Machine) if each.name != "force_pte")


@dataclass(frozen=True)
class Setup:
    """What a script's ``machine`` line says; ``va`` is the size of hyp stage-1 addresses in bits."""

    generation: str = DEFAULT_GENERATION
    granule: str = "4k"
    ipa: int = 40
    pa: int = 48
    va: int = 48
    lpa2: bool = False
    machine: Machine = field(default_factory=Machine)

    @property
    def behaviours(self) -> Generation:
        """The named generation."""
        return generation(self.generation)

    def geometry(self) -> Geometry:
        """The stage-2 shape KVM makes for this IPA size."""
        return Geometry.for_ipa(self.ipa, GRANULES[self.granule], self.pa, self.lpa2)

    def hyp_geometry(self) -> Geometry:
        """The hyp stage-1 shape for this VA size."""
        return Geometry.for_stage1(self.va, GRANULES[self.granule], self.pa, self.lpa2)

    def text(self) -> str:
        """The ``machine`` line; :func:`parse_setup` is the inverse."""
        parts = ["machine", f"generation={self.generation}", f"granule={self.granule}", f"ipa={self.ipa}"]
        parts += [f"pa={self.pa}", f"va={self.va}", f"lpa2={int(self.lpa2)}"]
        parts += [f"{name}={int(getattr(self.machine, name))}" for name in _SWITCHES]
        if self.machine.force_pte is not None:
            parts.append(f"force_pte={int(self.machine.force_pte)}")
        return " ".join(parts)


def parse_setup(line: str) -> Setup:
    """The setup of a ``machine`` line.  Raises :class:`~inspector.model.operations.ScriptError`."""
    values: dict[str, str] = {}
    for word in line.split()[1:]:
        key, equals, text = word.partition("=")
        if not equals:
            raise ScriptError(f"machine: {word} is not key=value")
        values[key] = text
    setup = Setup()
    try:
        if (label := values.pop("generation", None)) is not None:
            if label not in GENERATIONS:
                raise ValueError(f"no generation {label}; known are {', '.join(GENERATIONS)}")
            setup = replace(setup, generation=label)
        if (granule := values.pop("granule", None)) is not None:
            if granule not in GRANULES:
                raise ValueError(f"the granule is one of {', '.join(GRANULES)}")
            setup = replace(setup, granule=granule)
        sizes = {key: bounded(key, parse_number(values.pop(key), key), *_BITS[key]) for key in _BITS if key in values}
        ipa, pa, va = (sizes.get(key, getattr(setup, key)) for key in _BITS)
        setup = replace(setup, ipa=ipa, pa=pa, va=va)
        if "lpa2" in values:
            setup = replace(setup, lpa2=bool(parse_number(values.pop("lpa2"), "lpa2")))
        switches = {key: bool(parse_number(values.pop(key), key)) for key in (*_SWITCHES, "force_pte") if key in values}
        if values:
            raise ValueError(f"{next(iter(values))} is not a word of it")
        setup = replace(setup, machine=replace(setup.machine, **switches))
        setup.geometry()
    except (ValueError, BadInput) as error:
        raise ScriptError(f"machine: {error}") from None
    return setup


class Outcome(NamedTuple):
    """What an operation gave: the kernel's return value; an entry or a page where it returns one; its level."""

    ret: int
    value: int = 0
    level: int = 0


class NoSuchEntry(Exception):
    """A poke or a reference for an entry that does not exist."""


class Session:
    """A store with a stage-2 or hyp stage-1 table in it, and the operations of a script applied to it.

    With ``effort`` no more than that is spent: `apply` and walks of the table then raise ``TooLarge``.
    """

    def __init__(self, setup: Setup, effort: Effort | None = None) -> None:
        self.setup = setup
        granule = 1 << GRANULES[setup.granule]
        self.store = PageStore(granule) if effort is None else BoundedStore(granule, effort)
        self.pgt: Stage2 | HypStage1 | None = None
        self.last_page = 0
        self._apply = {name.removeprefix("_do_"): getattr(self, name) for name in dir(self) if name[:4] == "_do_"}

    def apply(self, operation: Operation) -> Outcome:
        """Run one operation.

        Raises ``ValueError`` for what this generation does not have, :class:`NoSuchEntry`, and ``ScriptError`` for
        an operation that needs another kind of table.
        """
        store = self.store
        store.fail_in = operation.fail_alloc
        pgt = self.pgt
        if pgt is not None:
            pgt.lose_cas = operation.lose_cas
            if operation.lose_cas:
                pgt.race_mode, pgt.race_value = operation.race_mode, operation.race_value
        outcome: Outcome = self._apply[operation.name](operation)
        store.fail_in = 0
        return outcome

    @property
    def stage2(self) -> Stage2:
        """The stage-2 table.  Raises ``ScriptError`` when there is none."""
        if not isinstance(self.pgt, Stage2):
            raise ScriptError("there is no stage-2 table: begin with init")
        return self.pgt

    @property
    def hyp(self) -> HypStage1:
        """The hyp stage-1 table.  Raises ``ScriptError`` when there is none."""
        if not isinstance(self.pgt, HypStage1):
            raise ScriptError("there is no hyp stage-1 table: begin with hyp_init")
        return self.pgt

    @property
    def table(self) -> Stage2 | HypStage1:
        """The table of either kind.  Raises ``ScriptError`` when there is none."""
        if self.pgt is None:
            raise ScriptError("there is no table yet: begin with init or hyp_init")
        return self.pgt

    @staticmethod
    def _cache(operation: Operation) -> MemoryCache | None:
        return None if operation.cache is None else MemoryCache(operation.cache)

    def _do_init(self, o: Operation) -> Outcome:
        self.pgt = Stage2(self.setup.behaviours, self.setup.machine, self.setup.geometry(), self.store)
        return Outcome(self.pgt.init())

    def _do_hyp_init(self, o: Operation) -> Outcome:
        self.pgt = HypStage1(self.setup.behaviours, self.setup.machine, self.setup.hyp_geometry(), self.store)
        return Outcome(self.pgt.init())

    def _do_map(self, o: Operation) -> Outcome:
        return Outcome(self.stage2.map(o.addr, o.size, o.pa, o.prot, self._cache(o), o.flags))

    def _do_unmap(self, o: Operation) -> Outcome:
        return Outcome(self.stage2.unmap(o.addr, o.size))

    def _do_set_owner(self, o: Operation) -> Outcome:
        return Outcome(self.stage2.set_owner(o.addr, o.size, self._cache(o), o.value))

    def _do_annotate(self, o: Operation) -> Outcome:
        return Outcome(self.stage2.annotate(o.addr, o.size, self._cache(o), o.kind, o.value))

    def _do_wrprotect(self, o: Operation) -> Outcome:
        return Outcome(self.stage2.wrprotect(o.addr, o.size))

    def _do_relax_perms(self, o: Operation) -> Outcome:
        return Outcome(self.stage2.relax_perms(o.addr, o.prot, o.flags))

    def _do_mkyoung(self, o: Operation) -> Outcome:
        pte = self.stage2.mkyoung(o.addr, o.flags)
        return Outcome(0, pte)

    def _do_mkold(self, o: Operation) -> Outcome:
        return Outcome(0, self.stage2.mkold(o.addr))

    def _do_is_young(self, o: Operation) -> Outcome:
        return Outcome(self.stage2.is_young(o.addr))

    def _do_test_clear_young(self, o: Operation) -> Outcome:
        return Outcome(self.stage2.test_clear_young(o.addr, o.size, bool(o.switch)))

    def _do_flush(self, o: Operation) -> Outcome:
        return Outcome(self.stage2.flush(o.addr, o.size))

    def _do_split(self, o: Operation) -> Outcome:
        if o.cache is None:
            raise ScriptError("split: a memory cache is needed, cache=none is not possible")
        return Outcome(self.stage2.split(o.addr, o.size, MemoryCache(o.cache)))

    def _do_create_unlinked(self, o: Operation) -> Outcome:
        if o.cache is None:
            raise ScriptError("create_unlinked: a memory cache is needed, cache=none is not possible")
        page = self.stage2.create_unlinked(o.pa, o.level, o.prot, MemoryCache(o.cache), bool(o.switch))
        if page < 0:
            return Outcome(page)
        self.last_page = page
        return Outcome(0, page)

    def _do_free_unlinked(self, o: Operation) -> Outcome:
        page = self.last_page if o.value == LAST else o.value
        if page not in self.store.pages:
            raise NoSuchEntry(f"no table page at {page:#x}")
        self.stage2.free_unlinked(page, o.level)
        return Outcome(0)

    def _do_get_leaf(self, o: Operation) -> Outcome:
        return Outcome(*self.table.get_leaf(o.addr))

    def _do_destroy(self, o: Operation) -> Outcome:
        self.stage2.destroy()
        return Outcome(0)

    def _do_destroy_range(self, o: Operation) -> Outcome:
        self.stage2.destroy_range(o.addr, o.size)
        return Outcome(0)

    def _do_destroy_pgd(self, o: Operation) -> Outcome:
        self.stage2.destroy_pgd()
        return Outcome(0)

    def _do_grace_period(self, o: Operation) -> Outcome:
        waiting = len(self.store.deferred)
        self.stage2.grace_period()
        return Outcome(waiting)

    def _place(self, o: Operation) -> tuple[int, int]:
        place = self.table.entry_at(o.addr, o.level)
        if place is None:
            raise NoSuchEntry(f"no entry of level {o.level} for {o.addr:#x}")
        return place

    def _do_poke(self, o: Operation) -> Outcome:
        page, index = self._place(o)
        entries = self.store.pages[page]
        old, entries[index] = entries[index], o.value
        self.store.counts[page] += o.change
        return Outcome(self.store.counts[page], old)

    def _do_reference(self, o: Operation) -> Outcome:
        page, index = self._place(o)
        self.store.counts[page] += o.change
        return Outcome(self.store.counts[page], self.store.pages[page][index])

    def _do_hyp_map(self, o: Operation) -> Outcome:
        return Outcome(self.hyp.map(o.addr, o.size, o.pa, o.prot))

    def _do_hyp_unmap(self, o: Operation) -> Outcome:
        return Outcome(self.hyp.unmap(o.addr, o.size))

    def _do_hyp_destroy(self, o: Operation) -> Outcome:
        self.hyp.destroy()
        return Outcome(0)
