"""A model under a script: what is to be built, and operations applied to it.

``Setup`` is the ``machine`` line of a script; :class:`Session` runs :class:`~inspector.model.operations.Operation`
on the model it describes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Final, NamedTuple

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
        result = self.RUN[operation.name](self, operation)
        store.fail_in = 0
        return result if isinstance(result, Outcome) else Outcome(result or 0)

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
    def cache(o: Operation) -> MemoryCache | None:
        """The memory cache of an operation."""
        return None if o.cache is None else MemoryCache(o.cache)

    @staticmethod
    def _needed_cache(o: Operation) -> MemoryCache:
        if o.cache is None:
            raise ScriptError(f"{o.name}: a memory cache is needed, cache=none is not possible")
        return MemoryCache(o.cache)

    def _init(self, o: Operation) -> int:
        self.pgt = Stage2(self.setup.behaviours, self.setup.machine, self.setup.geometry(), self.store)
        return self.pgt.init()

    def _hyp_init(self, o: Operation) -> int:
        self.pgt = HypStage1(self.setup.behaviours, self.setup.machine, self.setup.hyp_geometry(), self.store)
        return self.pgt.init()

    def _split(self, o: Operation) -> int:
        return self.stage2.split(o.addr, o.size, self._needed_cache(o))

    def _create_unlinked(self, o: Operation) -> Outcome:
        page = self.stage2.create_unlinked(o.pa, o.level, o.prot, self._needed_cache(o), bool(o.switch))
        if page < 0:
            return Outcome(page)
        self.last_page = page
        return Outcome(0, page)

    def _free_unlinked(self, o: Operation) -> None:
        page = self.last_page if o.value == LAST else o.value
        if page not in self.store.pages:
            raise NoSuchEntry(f"no table page at {page:#x}")
        self.stage2.free_unlinked(page, o.level)

    def _grace_period(self, o: Operation) -> int:
        waiting = len(self.store.deferred)
        self.stage2.grace_period()
        return waiting

    def _place(self, o: Operation) -> tuple[int, int]:
        place = self.table.entry_at(o.addr, o.level)
        if place is None:
            raise NoSuchEntry(f"no entry of level {o.level} for {o.addr:#x}")
        return place

    def _poke(self, o: Operation) -> Outcome:
        page, index = self._place(o)
        entries = self.store.pages[page]
        old, entries[index] = entries[index], o.value
        self.store.counts[page] += o.change
        return Outcome(self.store.counts[page], old)

    def _reference(self, o: Operation) -> Outcome:
        page, index = self._place(o)
        self.store.counts[page] += o.change
        return Outcome(self.store.counts[page], self.store.pages[page][index])

    def _get_leaf(self, o: Operation) -> Outcome:
        if not self.setup.behaviours.get_leaf:
            raise ValueError(f"{self.setup.behaviours.label} has no get_leaf")
        return Outcome(*self.table.get_leaf(o.addr))

    RUN: ClassVar[Mapping[str, Callable[[Session, Operation], Outcome | int | None]]] = {
        "init": _init,
        "map": lambda s, o: s.stage2.map(o.addr, o.size, o.pa, o.prot, s.cache(o), o.flags),
        "unmap": lambda s, o: s.stage2.unmap(o.addr, o.size),
        "set_owner": lambda s, o: s.stage2.set_owner(o.addr, o.size, s.cache(o), o.value),
        "annotate": lambda s, o: s.stage2.annotate(o.addr, o.size, s.cache(o), o.kind, o.value),
        "wrprotect": lambda s, o: s.stage2.wrprotect(o.addr, o.size),
        "relax_perms": lambda s, o: s.stage2.relax_perms(o.addr, o.prot, o.flags),
        "mkyoung": lambda s, o: Outcome(0, s.stage2.mkyoung(o.addr, o.flags)),
        "mkold": lambda s, o: Outcome(0, s.stage2.mkold(o.addr)),
        "is_young": lambda s, o: s.stage2.is_young(o.addr),
        "test_clear_young": lambda s, o: s.stage2.test_clear_young(o.addr, o.size, bool(o.switch)),
        "flush": lambda s, o: s.stage2.flush(o.addr, o.size),
        "split": _split,
        "create_unlinked": _create_unlinked,
        "free_unlinked": _free_unlinked,
        "get_leaf": _get_leaf,
        "destroy": lambda s, o: s.stage2.destroy(),
        "destroy_range": lambda s, o: s.stage2.destroy_range(o.addr, o.size),
        "destroy_pgd": lambda s, o: s.stage2.destroy_pgd(),
        "grace_period": _grace_period,
        "poke": _poke,
        "reference": _reference,
        "hyp_init": _hyp_init,
        "hyp_map": lambda s, o: s.hyp.map(o.addr, o.size, o.pa, o.prot),
        "hyp_unmap": lambda s, o: s.hyp.unmap(o.addr, o.size),
        "hyp_destroy": lambda s, o: s.hyp.destroy(),
    }
    """Every operation by name; what gives a number gives the return value."""
