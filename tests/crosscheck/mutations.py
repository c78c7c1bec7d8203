"""The mutations: the small wrong things that page-table code can do, each of which the campaign must notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from errno import EAGAIN, EINVAL, ENOMEM, ERANGE
from typing import Any, Final

from inspector.events import STORE, TLBI
from inspector.model.attributes import AF, MEMATTR, S2AP_R, SH_INNER
from inspector.model.destroy import grace_period
from inspector.model.hyp import GP
from inspector.model.map_unlink import NOT_SW
from inspector.model.prot import SW_MASK, Prot
from inspector.model.state import LAST_LEVEL, SHARED, SKIP_BBM_TLBI, SKIP_CMO, TABLE_POST, TABLE_PRE
from tests.crosscheck.mutate import Change, Mutation, answers, arguments, during, moved, nothing, result, sees

R, W, X = int(Prot.R), int(Prot.W), int(Prot.X)


def attribute(wrong: Callable[[int], int]) -> Change:
    """A rule that gives attribute bits or an error: the bits are made wrong."""
    return result(lambda attr: wrong(attr) if attr >= 0 else attr)


def visitor(wrong: Callable[[Any, Any, int], int]) -> Change:
    """``Walk.__init__`` with another visitor around the true one."""

    def change(real: Any) -> Any:
        def init(self: Any, pgt: Any, visit: Any, *rest: Any) -> None:
            real(self, pgt, lambda ctx, which: wrong(visit, ctx, which), *rest)

        return init

    return change


def _post_first(real: Any) -> Any:
    """The visit that comes after the children comes before them."""

    def init(self: Any, pgt: Any, visit: Any, flags: int, *rest: Any) -> None:
        if flags & TABLE_POST and not flags & TABLE_PRE:
            flags ^= TABLE_POST | TABLE_PRE
            real(self, pgt, lambda ctx, which: visit(ctx, TABLE_POST if which == TABLE_PRE else which), flags, *rest)
        else:
            real(self, pgt, visit, flags, *rest)

    return init


def _no_descent_into_new(real: Any) -> Any:
    def walk_table(pgt: Any, walk: Any, table: int, level: int) -> int:
        if walk.flags & TABLE_PRE and pgt.store.counts.get(table) == 1 and table != pgt.root:
            shift = pgt.shifts[level - 1]
            walk.addr = ((walk.addr >> shift) + 1) << shift
            return 0
        answer: int = real(pgt, walk, table, level)
        return answer

    return walk_table


def _one_root(real: Any) -> Any:
    def walk_table(pgt: Any, walk: Any, table: int, level: int) -> Any:
        roots = range(pgt.root, pgt.root + pgt.root_pages * pgt.page_size)
        return real(pgt, walk, pgt.root if pgt.root and table in roots else table, level)

    return walk_table


def _limit_refused(real: Any) -> Any:
    def walk_range(pgt: Any, visit: Any, flags: int, addr: int, size: int, *rest: Any, **words: Any) -> Any:
        if addr + size >= 1 << pgt.ia_bits:
            return -ERANGE
        return real(pgt, visit, flags, addr, size, *rest, **words)

    return walk_range


def _get_late(real: Any) -> Any:
    quiet = during("pages.PageStore.get", nothing)(real)

    def make_pte(pgt: Any, ctx: Any, new: int) -> None:
        quiet(pgt, ctx, new)
        if new:
            pgt.store.get(ctx.table)

    return make_pte


def _keep_last(real: Any) -> Any:
    """put: the page allocated last is kept."""
    return lambda store, page: None if page == store.next_address - store.granule else real(store, page)


def _software_bits_shared(real: Any) -> Any:
    def try_leaf(self: Any, ctx: Any, phys: int) -> Any:
        like = not (ctx.old ^ self.new_leaf(ctx.level, phys)) & NOT_SW
        return real(self, moved(ctx, flags=ctx.flags & ~SHARED) if like else ctx, phys)

    return try_leaf


def _with_field(name: str, value: Any) -> Change:
    """The object it works on has another value in a field."""

    def change(real: Any) -> Any:
        def function(self: Any, *rest: Any) -> Any:
            setattr(self, name, value)
            return real(self, *rest)

        return function

    return change


def _detached_at_once(real: Any) -> Any:
    def detach(self: Any, ctx: Any) -> None:
        real(self, ctx)
        grace_period(self.pgt)

    return detach


def _child_before_block(real: Any) -> Any:
    def table_post(self: Any, ctx: Any) -> Any:
        if self.anchor != ctx.ptep:
            return real(self, ctx)
        child = self.child
        self.pgt.store.put(child)
        later = during("pages.PageStore.put", lambda put: lambda store, page: page == child or put(store, page))
        return later(real)(self, ctx)

    return table_post


def _pa_stands_still(real: Any) -> Any:
    def try_leaf(self: Any, ctx: Any, old: int) -> Any:
        phys = self.phys
        ret = real(self, ctx, old)
        self.phys = phys
        return ret

    return try_leaf


def _puts_backwards(real: Any) -> Any:
    def visit(self: Any, ctx: Any, which: int) -> Any:
        puts: list[int] = []
        ret = during("pages.PageStore.put", lambda put: lambda store, page: puts.append(page))(real)(self, ctx, which)
        for page in reversed(puts):
            self.pgt.store.put(page)
        return ret

    return visit


def _silent_when_unchanged(real: Any) -> Any:
    quiet = during("in_place.flush_relaxed", nothing)(real)

    def relax_perms(pgt: Any, addr: int, prot: int, flags: int = 0) -> Any:
        entry = pgt.get_leaf(addr)[1]
        wanted = (S2AP_R if prot & R else 0) | (1 << 7 if prot & W else 0)
        same = entry & 1 and not wanted & ~entry and not prot & X
        return (quiet if same else real)(pgt, addr, prot, flags)

    return relax_perms


def _without_fwb(real: Any) -> Any:
    def flush(pgt: Any, addr: int, size: int) -> Any:
        fwb, pgt.attributes.fwb = pgt.attributes.fwb, False
        try:
            return real(pgt, addr, size)
        finally:
            pgt.attributes.fwb = fwb

    return flush


def _split_without_a_page(real: Any) -> Any:
    def split_walker(pgt: Any, cache: Any, ctx: Any, which: int) -> Any:
        if cache.nobjs < 1 and ctx.old & 1 and 1 <= ctx.level < LAST_LEVEL:
            pgt.store.zalloc(cache)
            return -ENOMEM
        return real(pgt, cache, ctx, which)

    return split_walker


def _free_walker_keeps_tables(real: Any) -> Any:
    def free_walker(pgt: Any, ctx: Any, which: int) -> Any:
        only = during("pages.PageStore.put", lambda put: lambda store, page: page != ctx.table or put(store, page))
        return only(real)(pgt, ctx, which)

    return free_walker


def _free_walker_clears(real: Any) -> Any:
    def free_walker(pgt: Any, ctx: Any, which: int) -> Any:
        ret = real(pgt, ctx, which)
        if pgt.is_table(ctx.old, ctx.level) and ctx.table in pgt.store.pages:
            pgt.write(ctx, 0)
        return ret

    return free_walker


def _tlbi_before_store(real: Any) -> Any:
    def visit(self: Any, ctx: Any, which: int) -> Any:
        events = self.pgt.store.events
        start = len(events)
        ret = real(self, ctx, which)
        places = [at for at in range(start, len(events)) if events[at][0] in (STORE, TLBI)]
        if len(places) == 2:
            first, second = places
            events[first], events[second] = events[second], events[first]
        return ret

    return visit


def _hyp_build_forgotten(real: Any) -> Any:
    def walk_range(pgt: Any, *rest: Any, **words: Any) -> Any:
        pgt.machine = replace(pgt.machine, hyp_build=False)
        return real(pgt, *rest, **words)

    return walk_range


MUTATIONS: Final = (
    # --- descriptors
    Mutation("AF left out of new leaves", "attributes.Attributes.of_prot", attribute(lambda attr: attr & ~AF)),
    Mutation(
        "W taken for R",
        "attributes.Attributes.of_prot",
        arguments(lambda rules, prot: (rules, prot & ~R | (R if prot & W else 0))),
    ),
    Mutation("XN dropped from non-executable leaves", "attributes.Attributes.xn_of_prot", attribute(lambda xn: 0)),
    Mutation("SH set with LPA2", "attributes.Attributes.of_prot", attribute(lambda attr: attr | SH_INNER)),
    Mutation(
        "FWB ignored in MemAttr",
        "attributes.Attributes._memattr",
        lambda real: lambda rules, name: MEMATTR[name][False] << 2,
    ),
    Mutation("software bits dropped", "attributes.Attributes.of_prot", attribute(lambda attr: attr & ~SW_MASK)),
    Mutation(
        "device mapped executable",
        "attributes.Attributes.of_prot",
        arguments(lambda rules, prot: (rules, prot & ~X if prot & Prot.DEVICE and not prot & Prot.NORMAL_NC else prot)),
    ),
    Mutation(
        "NOFWB flag forgotten",
        "attributes.Attributes.__init__",
        arguments(lambda rules, which, machine, lpa2: (rules, which, replace(machine, no_fwb=False), lpa2)),
    ),
    Mutation(
        "PXN and UXN swapped",
        "attributes.Attributes.xn_of_prot",
        attribute(lambda xn: xn ^ 2 << 53 if xn >> 53 & 1 else xn),
        "7.3",
    ),
    Mutation("block made of page type", "map_data.MapData.new_leaf", result(lambda new: new | 3 if new & 1 else new)),
    Mutation(
        "PA[51:48] lost on 64K pages",
        "state.Pgtable.pte_of",
        arguments(lambda pgt, pa: (pgt, pa if pgt.lpa2 else pa & (1 << 48) - 1)),
    ),
    Mutation(
        "PA[51:50] lost with LPA2",
        "state.Pgtable.pte_of",
        arguments(lambda pgt, pa: (pgt, pa & (1 << 50) - 1 if pgt.lpa2 else pa)),
    ),
    # --- the walker
    Mutation(
        "one entry short",
        "walker.Walk.__init__",
        visitor(lambda visit, ctx, which: 0 if ctx.idx == len(ctx.entries) - 1 else visit(ctx, which)),
    ),
    Mutation(
        "end of the range included",
        "walker.Walk.__init__",
        arguments(lambda walk, pgt, v, f, addr, size, *rest: (walk, pgt, v, f, addr, size + pgt.page_size, *rest)),
    ),
    Mutation(
        "range counted from the unaligned address",
        "walker.Walk.__init__",
        arguments(
            lambda walk, pgt, v, f, addr, size, *rest: (walk, pgt, v, f, addr, size + (addr & ~pgt.page_mask), *rest)
        ),
    ),
    Mutation("end equal to the limit refused", "walker.walk_range", _limit_refused),
    Mutation("no descent into a table just installed", "walker.walk_table", _no_descent_into_new),
    Mutation("TABLE_POST before the children", "walker.Walk.__init__", _post_first),
    Mutation("-EAGAIN forgotten in a fault handler", "walker._tolerates_eagain", answers(True)),
    Mutation("second root page never reached", "walker.walk_table", _one_root),
    Mutation("SHARED walk allowed in the hypervisor", "walker.walk_range", _hyp_build_forgotten),
    # --- map
    Mutation("break without TLBI for a leaf", "map_unlink.try_break_pte", during("state.Pgtable.flush_ipa", nothing)),
    Mutation(
        "break without TLBI for a table", "map_unlink.try_break_pte", during("state.Pgtable.flush_range", nothing)
    ),
    Mutation(
        "TLBI hint one level off",
        "map_unlink.try_break_pte",
        during("state.Pgtable.flush_ipa", arguments(lambda pgt, ipa, level: (pgt, ipa, level - 1))),
    ),
    Mutation("put forgotten in break", "map_unlink.try_break_pte", during("pages.PageStore.put", nothing)),
    Mutation("get after the store", "map_unlink.make_pte", _get_late),
    Mutation(
        "make without release",
        "map_unlink.make_pte",
        during("state.Pgtable.write", arguments(lambda pgt, ctx, new, release=0: (pgt, ctx, new))),
    ),
    Mutation(
        "child leaked when the race for a table is lost",
        "map_unlink.MapUnlink.install_table",
        during("pages.PageStore.put", _keep_last),
    ),
    Mutation(
        "identical map accepted",
        "map_unlink.MapUnlink.try_leaf",
        result(lambda ret: 0 if ret == -EAGAIN else ret),
    ),
    Mutation("software bits bypass shared walks too", "map_unlink.MapUnlink.try_leaf", _software_bits_shared),
    Mutation(
        "dcache forgotten",
        "state.Stage2Table.cache_maintenance",
        during("attributes.Attributes.cacheable", answers(False)),
    ),
    Mutation(
        "icache forgotten",
        "state.Stage2Table.cache_maintenance",
        during("attributes.Attributes.executable", answers(False)),
    ),
    Mutation("SKIP_CMO forgotten", "map_unlink.MapUnlink.try_leaf", sees(lambda ctx: {"flags": ctx.flags & ~SKIP_CMO})),
    Mutation(
        "SKIP_BBM_TLBI forgotten",
        "map_unlink.try_break_pte",
        sees(lambda ctx: {"flags": ctx.flags & ~SKIP_BBM_TLBI}),
    ),
    Mutation(
        "block allowed with misaligned PA",
        "map_data.MapData.leaf_allowed",
        arguments(lambda data, ctx, phys: (data, ctx, 0)),
    ),
    Mutation(
        "block allowed with misaligned IPA",
        "map_data.MapData.leaf_allowed",
        sees(lambda ctx: {"addr": ctx.addr & -(1 << 30)}),
    ),
    Mutation("block beyond the end of the range", "map_data.MapData.leaf_allowed", sees(lambda ctx: {"end": 1 << 64})),
    Mutation("force_pte forgotten", "map_data.MapData.leaf_allowed", _with_field("force_pte", False)),
    Mutation("detached table freed at once", "map_unlink.MapUnlink.detach", _detached_at_once),
    Mutation(
        "level of the deferred table off by one",
        "state.Pgtable.defer",
        arguments(lambda pgt, page, level: (pgt, page, level + 1)),
    ),
    Mutation("no barrier after map", "map.stage2_map", during("state.Pgtable.barrier", nothing)),
    Mutation("owner 2 accepted", "map.MAX_OWNER", lambda real: real + 1),
    Mutation("annotation type 1 accepted", "map.LOCKED_TYPE", lambda real: 0, "7.3"),
    Mutation(
        "no warning for LOCKED in an exclusive walk",
        "map_unlink.try_break_pte",
        during("state.Pgtable.warn", nothing),
    ),
    # --- the anchor
    Mutation(
        "flush by IPA instead of everything at the anchor",
        "map_anchor.MapAnchor.table_pre",
        during("state.Pgtable.flush_all", lambda real: lambda pgt: pgt.flush_ipa(0, 0)),
        "6.1",
    ),
    Mutation(
        "leaf under the anchor keeps its reference",
        "map_anchor.MapAnchor.leaf",
        lambda real: lambda data, ctx: 0 if data.anchor else real(data, ctx),
        "6.1",
    ),
    Mutation(
        "anchor's child freed before the block is stored",
        "map_anchor.MapAnchor.table_post",
        _child_before_block,
        "6.1",
    ),
    Mutation("running PA not advanced", "map_anchor.MapAnchor.try_leaf", _pa_stands_still, "6.1"),
    # --- unmap
    Mutation("table TLBI with a level hint", "unmap.table_hint", lambda real: lambda pgt, level: level),
    Mutation("unmap without TLBI", "unmap.Unmap.visit", during("state.Pgtable.flush_ipa", nothing)),
    Mutation("empty tables kept", "unmap.Unmap.visit", during("pages.PageStore.page_count", answers(2))),
    Mutation("child freed before the parent's reference is dropped", "unmap.Unmap.visit", _puts_backwards),
    Mutation(
        "dcache cleaned in spite of FWB",
        "unmap.Unmap.__init__",
        arguments(lambda data, pgt, deferred, cleans: (data, pgt, deferred, pgt.machine.dcache_op)),
    ),
    Mutation("deferred flush forgotten", "unmap.stage2_unmap", during("state.Pgtable.flush_range", nothing)),
    Mutation(
        "annotation survives unmap",
        "unmap.Unmap.visit",
        lambda real: lambda data, ctx, which: real(data, ctx, which) if ctx.old & 1 else 0,
    ),
    # --- attributes
    Mutation(
        "wrprotect clears R",
        "in_place.stage2_wrprotect",
        during(
            "in_place.update_leaf_attrs",
            arguments(lambda pgt, addr, size, to_set, to_clear, flags=0: (pgt, addr, size, to_set, S2AP_R, flags)),
        ),
    ),
    Mutation("relax_perms silent when nothing changed", "in_place.stage2_relax_perms", _silent_when_unchanged),
    Mutation(
        "execute permission without icache",
        "in_place.AttrWalk.visit",
        during("attributes.Attributes.executable", answers(True)),
    ),
    Mutation("mkold returns the new entry", "in_place.stage2_mkold", result(lambda pte: pte & ~AF), "6.1"),
    Mutation("test_clear_young always clears", "in_place.AgeWalk.visit", _with_field("mkold", True)),
    Mutation("flush in spite of FWB", "in_place.stage2_flush", _without_fwb),
    # --- split and destroy
    Mutation(
        "split keeps the memory type",
        "attributes.Attributes.prot_of",
        lambda real: lambda rules, pte: real(rules, pte) | (Prot.DEVICE if pte >> 2 & 0xF == 1 else 0),
    ),
    Mutation("split wants more pages", "split.tables_for", result(lambda count: count + 3000 if count > 1 else count)),
    Mutation("split without a page left", "split.split_walker", _split_without_a_page),
    Mutation("unlinked table flushed while built", "split.UNLINKED_FLAGS", lambda real: SKIP_BBM_TLBI),
    Mutation("unlinked table leaked on error", "split.drop_unlinked", nothing),
    Mutation("destroy forgets tables", "destroy.free_walker", _free_walker_keeps_tables),
    Mutation("destroy clears entries", "destroy.free_walker", _free_walker_clears),
    Mutation(
        "destroy_range frees tables in use",
        "destroy.free_walker",
        during("pages.PageStore.page_count", answers(1)),
        "7.3",
    ),
    # --- hyp stage-1
    Mutation("hyp: RO encoded as RW", "hyp.HypStage1.attr_of", attribute(lambda attr: attr & ~(2 << 6))),
    Mutation("hyp: GP forgotten", "hyp.HypStage1.attr_of", attribute(lambda attr: attr & ~GP)),
    Mutation("hyp: partial block unmapped", "hyp.HypUnmap.visit", sees(lambda ctx: {"end": 1 << 64})),
    Mutation("hyp: hole passed over", "hyp.HypUnmap.visit", result(lambda ret: 0 if ret == -EINVAL else ret)),
    Mutation("hyp: TLBI before the store", "hyp.HypUnmap.visit", _tlbi_before_store),
)
