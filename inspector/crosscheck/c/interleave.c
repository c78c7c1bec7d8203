// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Two or three operations of pgtable.c as fibers, and every interleaving of their shared accesses.
 *
 * A shared access is one to an entry or to a page's reference count. Before each, the fiber that is about to make it
 * comes back to the driver, which chooses who goes on: a schedule is the list of these choices. Depth first over all
 * schedules that preempt at most `bound` times (going on with another fiber while the last one could go on too; after
 * the end of a fiber it costs nothing).
 *
 * RCU: what an operation hands to free_unlinked_table() is freed by a fiber of its own, which may run once every fiber
 * that was inside rcu_read_lock() at that time has left, and at any point later.
 *
 * Reduction. A location that only one fiber touches, or that none writes, in any schedule, is local: accesses to it are
 * no points of choice. `touched` knows who read and who wrote what in all schedules so far; when a schedule makes one
 * more location shared, the enumeration starts again with it. At the end no explored schedule has a conflict outside
 * the set. A page that is freed is a conflict with whoever touched an entry of it before, unless something orders the two
 * (vector clocks say what: accesses to one location, and the end of a grace period). That loses nothing, also under the
 * bound: take a schedule with a preemption before a local access. Let the
 * preempted fiber first go on over its local accesses up to its next shared one (or its end). They commute with all
 * that others do, so every fiber reads the same values and the end is the same; the preemption has moved to a point of
 * choice, or has become a free switch at the fiber's end; their number did not grow.
 * TLB invalidation, barriers and cache maintenance are local too: nothing here reads what they do. What another CPU
 * could do between a break and its invalidation it does in some schedule just after: the protocol's rules for entries
 * that are LOCKED judge that.
 */
#include <stdio.h>
#include <sys/mman.h>

#include "harness.h"

#define MOST_FIBERS	4		/* with the RCU callback */
#define STACK		(256 << 10)
#define ARENA		1024		/* pages that one fiber may allocate */
#define RCU		(MOST_FIBERS - 1)

bool interleaving;

/* ---- switching, without a system call ------------------------------------------------------------------------------ */

void fiber_switch(void **save, void *load) __attribute__((visibility("hidden")));
void fiber_begin(void) __attribute__((visibility("hidden")));

#if defined(__x86_64__)
asm(".text\n"
    ".hidden fiber_switch\n.globl fiber_switch\n.type fiber_switch, @function\n"
    "fiber_switch:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\n"
    "movq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\n"
    "ret\n"
    ".size fiber_switch, . - fiber_switch\n"
    ".section .note.GNU-stack,\"\",@progbits\n.text\n");
#define RETURN	6			/* where it is */
#define FRAME	8			/* what was saved, the return address, and one that keeps the stack aligned as after a call */
#elif defined(__aarch64__)
asm(".text\n"
    ".hidden fiber_switch\n.globl fiber_switch\n.type fiber_switch, %function\n"
    "fiber_switch:\n"
    "sub sp, sp, #160\n"
    "stp x19, x20, [sp]\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
    "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
    "stp d8, d9, [sp, #96]\nstp d10, d11, [sp, #112]\nstp d12, d13, [sp, #128]\nstp d14, d15, [sp, #144]\n"
    "mov x2, sp\nstr x2, [x0]\n"
    "mov sp, x1\n"
    "ldp x19, x20, [sp]\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
    "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\n"
    "ldp d8, d9, [sp, #96]\nldp d10, d11, [sp, #112]\nldp d12, d13, [sp, #128]\nldp d14, d15, [sp, #144]\n"
    "add sp, sp, #160\n"
    "ret\n"
    ".size fiber_switch, . - fiber_switch\n"
    ".section .note.GNU-stack,\"\",%progbits\n.text\n");
#define RETURN	11			/* x30 */
#define FRAME	20
#else
#error "no fibers for this machine: x86_64 and aarch64 have them"
#endif

/* ---- one schedule -------------------------------------------------------------------------------------------------- */

struct access {
	u32 fiber, kind;
	u64 pa, old, value;
};

/* What a fiber knows of: its own accesses, and those of others that happened before, by number. */
typedef u32 clock_of __attribute__((vector_size(4 * MOST_FIBERS)));

static clock_of later(clock_of a, clock_of b)
{
	clock_of mask = (clock_of)(a > b);

	return (a & mask) | (b & ~mask);
}

struct fiber {
	void *sp;
	char *stack;
	struct running at;
	struct op op;
	struct result result;
	bool begun, ended;
	u64 hash;		/* of all that it read, wrote and did, in order */
	clock_of clock;
};

/* Who reads and who writes a location: an entry, or a page's reference count. */
struct location {
	u8 readers, writers;
	bool shared;		/* a point of choice */
	u32 writes, schedule;
	u64 order;		/* in this schedule: a hash of who wrote it, in order, and who read between */
	clock_of wrote, read;	/* of the last write, and of all reads */
};

#define ENTRIES		(PAGE_SIZE / 8)
#define COUNT		ENTRIES		/* the last location of each page */
#define LOCATIONS	(ENTRIES + 1)

struct locations {
	struct location at[LOCATIONS];
	clock_of touched;	/* when each fiber last touched an entry, in the schedule of that number */
	u32 schedule;
};

/* A point of choice that is not decided for good. */
struct choice {
	u8 enabled, tried, last, chosen, preemptions;
};

static struct {
	struct harness *h;
	u32 fibers;		/* of operations; the RCU callback comes on top */
	u32 bound;
	bool reduce;
	void *driver;
	struct fiber fiber[MOST_FIBERS];
	u32 running;
	VECTOR(struct choice) choices;
	VECTOR(u8) schedule;
	VECTOR(struct access) accesses;
	struct locations **locations;	/* by page; NULL: not accessed yet */
	size_t pages_known;
	bool grown;
	u32 number;		/* of this schedule */
	u64 state;		/* hash of what was stored */
	bool overrun;

	/* The state from which every schedule starts. */
	size_t used, deferred;
	struct page *pages;
	char *contents;
	VECTOR(u64) surplus;	/* references of each page that its entries do not account for */
	VECTOR(u32) dirty;	/* pages that were stored to */
	u8 *is_dirty;

	u64 locked_mask, locked_value;
	bool counts_valid;	/* only valid entries hold a reference (5.10) */

	u64 schedules, distinct;
	u64 *seen;
	size_t seen_size;
	VECTOR(char) broken;
} x;

static u64 mix(u64 hash, u64 value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15UL;
	return hash ^ hash >> 29;
}

static bool on_count(enum access_kind kind)
{
	return kind == AC_GET || kind == AC_PUT || kind == AC_COUNT;
}

static struct locations *locations(u64 pa)
{
	u64 page = (pa - x.h->base) >> PAGE_SHIFT;
	struct locations **at;

	if (pa < x.h->base || page >= x.pages_known)
		return NULL;
	at = &x.locations[page];
	if (unlikely(!*at)) {
		*at = aligned_alloc(sizeof(clock_of), sizeof(**at));
		if (!*at)
			abort();
		memset(*at, 0, sizeof(**at));
	}
	return *at;
}

/* What lies outside the store (a wild pointer) is one location; the access is a fault by itself. */
static struct location *location(enum access_kind kind, u64 pa)
{
	static struct location outside;
	struct locations *page = locations(pa);

	return page ? &page->at[on_count(kind) ? COUNT : (pa & ~PAGE_MASK) / 8] : &outside;
}

static void forget_locations(void)
{
	for (size_t i = 0; i < x.pages_known; i++)
		free(x.locations[i]);
	free(x.locations);
	x.locations = NULL;
	x.pages_known = 0;
}

static bool writes(enum access_kind kind)
{
	return kind == AC_STORE || kind == AC_CAS || kind == AC_GET || kind == AC_PUT;
}

static void to_driver(void)
{
	fiber_switch(&x.fiber[x.running].sp, x.driver);
}

void interleave_point(enum access_kind kind, u64 pa)
{
	struct location *place = location(kind, pa);
	u32 mask = 1 << x.running;

	/* A cmpxchg that fails only reads; whether it will is not known yet. */
	if (writes(kind))
		place->writers |= mask;
	else
		place->readers |= mask;
	if (!place->shared) {
		u32 all = place->readers | place->writers;

		if (place->writers && (all & (all - 1))) {
			place->shared = true;
			x.grown = true;
		}
	}
	if (place->shared || !x.reduce)
		to_driver();
}

static void order(struct fiber *fiber, struct location *place, bool write)
{
	fiber->clock[x.running]++;
	fiber->clock = later(fiber->clock, place->wrote);
	if (write) {
		fiber->clock = later(fiber->clock, place->read);
		place->wrote = fiber->clock;
	} else {
		place->read = later(place->read, fiber->clock);
	}
}

/* The entries of a page that is freed become points of choice for those whose last access nothing orders before that. */
static void freed(const struct fiber *fiber, struct locations *page)
{
	u32 others = 0;

	for (u32 i = 0; page->schedule == x.number && i < MOST_FIBERS; i++)
		if (i != x.running && page->touched[i] > fiber->clock[i])
			others |= 1 << i;
	for (u32 i = 0; others && i < ENTRIES; i++) {
		struct location *entry = &page->at[i];

		if (!entry->shared && (entry->readers | entry->writers) & others)
			entry->shared = x.grown = true;
	}
	if (others && !page->at[COUNT].shared)
		page->at[COUNT].shared = x.grown = true;
}

static void make_dirty(u64 pa)
{
	u64 index = (pa - x.h->base) >> PAGE_SHIFT;

	if (pa >= x.h->base && index < x.used && !x.is_dirty[index]) {
		x.is_dirty[index] = 1;
		*PUSH(x.dirty) = index;
	}
}

/* What an access does to its page: an entry is touched, the last reference goes. */
static void note(const struct fiber *fiber, enum access_kind kind, u64 pa, u64 old)
{
	struct locations *page = locations(pa);

	if (!page)
		return;
	if (!on_count(kind)) {
		if (page->schedule != x.number)
			page->touched = (clock_of){};
		page->schedule = x.number;
		page->touched[x.running] = fiber->clock[x.running];
	} else if (kind == AC_PUT && old == 1) {
		freed(fiber, page);
	}
}

void interleave_done(enum access_kind kind, u64 pa, u64 old, u64 value)
{
	struct fiber *fiber = &x.fiber[x.running];
	struct location *place = location(kind, pa);

	*PUSH(x.accesses) = (struct access){ .fiber = x.running, .kind = kind, .pa = pa, .old = old, .value = value };
	fiber->hash = mix(mix(mix(mix(fiber->hash, kind), pa), old), value);
	if (place->schedule != x.number)
		*place = (struct location){
			.readers = place->readers, .writers = place->writers,
			.shared = place->shared, .schedule = x.number,
		};
	order(fiber, place, writes(kind));
	note(fiber, kind, pa, old);
	if (writes(kind)) {
		place->order = mix(place->order, x.running);
		place->writes++;
		if (kind == AC_STORE || kind == AC_CAS) {
			x.state ^= mix(pa, old) ^ mix(pa, value);
			make_dirty(pa);
		}
	} else {
		place->order ^= mix(mix(place->writes, x.running), kind);
	}
}

u32 interleave_readers(void)
{
	u32 inside = 0;

	for (u32 i = 0; i < x.fibers; i++)
		if (x.fiber[i].at.rcu_depth > 0)
			inside |= 1 << i;
	return inside;
}

void interleave_rcu(int depth)
{
	if (depth)
		return;
	for (size_t i = 0; i < x.h->deferred.len; i++) {
		struct deferred *table = &x.h->deferred.at[i];

		if (!(table->readers & 1 << x.running))
			continue;
		table->readers &= ~(1 << x.running);
		for (u32 fiber = 0; fiber < MOST_FIBERS; fiber++)
			if (table->after[fiber] < x.fiber[x.running].clock[fiber])
				table->after[fiber] = x.fiber[x.running].clock[fiber];
	}
}

/* The first table whose grace period is over. */
static struct deferred *ready(void)
{
	for (size_t i = 0; i < x.h->deferred.len; i++)
		if (!x.h->deferred.at[i].readers)
			return &x.h->deferred.at[i];
	return NULL;
}

static void free_deferred(void)
{
#ifdef HAVE_FREE_UNLINKED
	struct deferred *table;

	while ((table = ready())) {
		struct deferred one = *table;
		struct fiber *callback = &x.fiber[RCU];

		for (u32 i = 0; i < MOST_FIBERS; i++)
			if (callback->clock[i] < one.after[i])
				callback->clock[i] = one.after[i];
		x.h->deferred.len--;
		memmove(table, table + 1, (x.h->deferred.len - (table - x.h->deferred.at)) * sizeof(one));
		kvm_pgtable_stage2_free_unlinked(&x.h->ops, va_of(one.pa), one.level);
	}
#endif
}

static void fiber_main(void)
{
	for (;;) {
		struct fiber *fiber = &x.fiber[x.running];

		if (x.running == RCU) {
			if (!sigsetjmp(fiber->at.exit, 0))
				free_deferred();
		} else {
			fiber->result.ret = guarded_op(x.h, &fiber->op);
		}
		fiber->ended = true;
		to_driver();
	}
}

static void start(u32 number)
{
	struct fiber *fiber = &x.fiber[number];
	void **top = (void **)(fiber->stack + STACK);
	struct op none = { .kind = OP_RCU };

	fiber->sp = top - FRAME;
	memset(fiber->sp, 0, FRAME * sizeof(*top));
	((void **)fiber->sp)[RETURN] = fiber_main;
	fiber->begun = fiber->ended = false;
	fiber->hash = 0;
	fiber->clock = (clock_of){};
	fiber->at.fiber = number;
	fiber->at.arena = x.used + number * ARENA;
	fiber->at.arena_end = fiber->at.arena + ARENA;
	begin_op(x.h, &fiber->at, number == RCU ? &none : &fiber->op, &fiber->result);
}

/* Let a fiber make the shared access it stands before, and all the local ones up to the next; at first also those
 * before its first shared one. */
static void go_on(u32 number)
{
	struct fiber *fiber = &x.fiber[number];

	for (bool again = true; again && !fiber->ended; fiber->begun = true) {
		again = !fiber->begun;
		x.running = number;
		x.h->at = &fiber->at;
		fiber_switch(&x.driver, fiber->sp);
	}
}

static void restore(void)
{
	struct harness *h = x.h;

	for (size_t i = 0; i < x.dirty.len; i++) {
		size_t index = x.dirty.at[i];

		memcpy(h->memory + (index << PAGE_SHIFT), x.contents + (index << PAGE_SHIFT), PAGE_SIZE);
		x.is_dirty[index] = 0;
	}
	x.dirty.len = 0;
	memcpy(h->pages, x.pages, x.used * sizeof(*h->pages));
	for (u32 i = 0; i < MOST_FIBERS; i++)
		for (size_t index = x.used + i * ARENA; index < x.fiber[i].at.arena; index++)
			h->pages[index] = (struct page){};
	h->deferred.len = x.deferred;
	h->events.len = 0;
	h->faults.len = 0;
	x.accesses.len = 0;
	x.schedule.len = 0;
	x.state = 0;
	x.number++;
	x.overrun = false;
}

/* The fibers that can go on. The RCU callback can once it has begun, or when a grace period is over. */
static u32 enabled(bool begun)
{
	u32 mask = 0;

	for (u32 i = 0; i < x.fibers; i++)
		if (!x.fiber[i].ended)
			mask |= 1 << i;
	if ((begun && !x.fiber[RCU].ended) || ready())
		mask |= 1 << RCU;
	return mask;
}

#define MOST_STEPS	(1 << 16)

/* One schedule: the first `known` choices are made, what comes after them is found on the way. */
static void run_schedule(size_t known, bool fixed)
{
	u32 last = 0, preemptions = 0;
	bool begun = false;
	u32 mask;

	interleaving = true;
	for (u32 i = 0; i < x.fibers; i++)
		start(i);
	x.fiber[RCU].ended = true;
	x.fiber[RCU].hash = 0;
	x.fiber[RCU].result = (struct result){};
	while ((mask = enabled(begun))) {
		size_t step = x.schedule.len;
		u32 next;

		if (fixed ? step < known : step < x.choices.len) {
			next = x.choices.at[step].chosen;
			if (!(mask & 1 << next)) {	/* a schedule that somebody wrote */
				x.overrun = true;
				next = __builtin_ctz(mask);
			}
		} else {
			next = mask & 1 << last && step ? last : (u32)__builtin_ctz(mask);
		}
		if (step >= x.choices.len)
			*PUSH(x.choices) = (struct choice){ .enabled = mask, .last = last, .preemptions = preemptions };
		x.choices.at[step].chosen = next;
		x.choices.at[step].enabled = mask;
		x.choices.at[step].tried |= 1 << next;
		if (step && next != last && mask & 1 << last)
			preemptions++;
		*PUSH(x.schedule) = next;
		if (next == RCU && x.fiber[RCU].ended) {
			start(RCU);
			begun = true;
		}
		go_on(next);
		last = next;
		if (x.schedule.len > MOST_STEPS) {
			x.overrun = true;
			break;
		}
	}
	interleaving = false;
	x.h->at = &x.h->sequential;
}

/* The next schedule in depth-first order: the deepest choice that has an alternative within the bound. */
static bool backtrack(void)
{
	x.choices.len = x.schedule.len;
	while (x.choices.len) {
		struct choice *choice = &x.choices.at[x.choices.len - 1];
		bool first = x.choices.len == 1;
		u32 left = choice->enabled & ~choice->tried;

		for (u32 i = 0; i < MOST_FIBERS; i++) {
			bool preempts = !first && i != choice->last && choice->enabled & 1 << choice->last;

			if (!(left & 1 << i) || choice->preemptions + preempts > x.bound)
				continue;
			choice->chosen = i;
			choice->tried |= 1 << i;
			return true;
		}
		x.choices.len--;
	}
	return false;
}

/* ---- what must hold at the end ------------------------------------------------------------------------------------- */


static void say(const char *text)
{
	while (*text)
		*PUSH(x.broken) = *text++;
	*PUSH(x.broken) = '\n';
}

static bool is_counted(u64 pte)
{
	if (x.locked_mask && (pte & x.locked_mask) == x.locked_value && !(pte & 1))
		return false;
	return x.counts_valid ? pte & 1 : pte != 0;
}

static s64 surplus_of(struct harness *h, size_t index)
{
	const u64 *entries = (const u64 *)(h->memory + (index << PAGE_SHIFT));
	s64 counted = 0;

	for (u32 i = 0; i < PAGE_SIZE / 8; i++)
		counted += is_counted(entries[i]);
	return h->pages[index].count - counted;
}

static void visit(u64 pa, int level, u32 mark)
{
	struct page *page = page_at(pa);
	const u64 *entries = va_of(pa);
	char said[160];

	if (!page || page->state != PAGE_USED) {
		snprintf(said, sizeof(said), "an entry leads to the page %#llx, which is not allocated", pa);
		say(said);
		return;
	}
	if (page->seen == mark) {
		snprintf(said, sizeof(said), "two entries lead to the table %#llx", pa);
		say(said);
		return;
	}
	page->seen = mark;
	for (u32 i = 0; i < PAGE_SIZE / 8; i++) {
		if (!entries[i])
			continue;
		if (is_table(entries[i], level)) {
			visit(kvm_pte_to_phys(entries[i]), level + 1, mark);
		} else if (x.locked_mask && !(entries[i] & 1) && (entries[i] & x.locked_mask) == x.locked_value) {
			size_t index = (pa - x.h->base) >> PAGE_SHIFT;
			const u64 *before = (const u64 *)(x.contents + (index << PAGE_SHIFT));

			if (index >= x.used || before[i] != entries[i]) {
				snprintf(said, sizeof(said), "the entry at %#llx is left LOCKED", pa + 8 * i);
				say(said);
			}
		}
	}
}

static void check_end(void)
{
	struct harness *h = x.h;
	char said[160];

	if (x.overrun)
		say("the operations do not end");
	if (x.h->faults.len)
		return;		/* said by themselves; the table cannot be trusted */
	h->dumps++;
	for (u64 i = 0; i < root_pages(); i++)
		visit(pa_of(h->pgt.pgd) + i * PAGE_SIZE, (int)h->pgt.start_level, h->dumps);
	for (u32 i = 0; i < MOST_FIBERS; i++) {
		size_t begin = i ? x.used + (i - 1) * ARENA : 0, end = i ? x.fiber[i - 1].at.arena : x.used;

		for (size_t index = begin; index < end; index++) {
			struct page *page = &h->pages[index];
			u64 pa = h->base + ((u64)index << PAGE_SHIFT);
			s64 before = index < x.used ? (s64)x.surplus.at[index] : 1;

			if (page->state != PAGE_USED)
				continue;
			if (page->seen != h->dumps) {
				if (index < x.used && x.pages[index].state == PAGE_USED && x.surplus.at[index] == (u64)-1)
					continue;	/* was not in the tree before */
				snprintf(said, sizeof(said), "the page %#llx is allocated, and no entry leads to it", pa);
				say(said);
			} else if (surplus_of(h, index) != before) {
				snprintf(said, sizeof(said), "the table %#llx has %d references, its entries account for %lld",
					 pa, page->count, page->count - surplus_of(h, index) + before);
				say(said);
			}
		}
	}
}

static bool is_new(void)
{
	u64 hash = x.state;
	size_t at;

	for (u32 i = 0; i < MOST_FIBERS; i++) {
		if (i >= x.fibers && i != RCU)
			continue;
		hash = mix(mix(hash, x.fiber[i].hash), x.fiber[i].result.ret);
		hash = mix(mix(hash, x.fiber[i].result.value), x.fiber[i].result.faults << 16 | x.fiber[i].result.warnings);
	}
	for (size_t i = 0; i < x.accesses.len; i++) {
		const struct access *one = &x.accesses.at[i];
		struct location *place = location(one->kind, one->pa);

		if (place->schedule == x.number && place->order) {
			hash ^= mix(on_count(one->kind) ? one->pa + COUNT : one->pa, place->order);
			place->order = 0;
		}
	}
	hash = mix(hash, x.h->faults.len) | 1;
	if (2 * x.distinct >= x.seen_size) {
		u64 *old = x.seen;
		size_t size = x.seen_size;

		x.seen_size = size ? 2 * size : 1024;
		x.seen = calloc(x.seen_size, sizeof(*x.seen));
		if (!x.seen)
			abort();
		for (size_t i = 0; i < size; i++) {
			for (at = old[i] & (x.seen_size - 1); old[i] && x.seen[at]; at = (at + 1) & (x.seen_size - 1))
				;
			if (old[i])
				x.seen[at] = old[i];
		}
		free(old);
	}
	for (at = hash & (x.seen_size - 1); x.seen[at]; at = (at + 1) & (x.seen_size - 1))
		if (x.seen[at] == hash)
			return false;
	x.seen[at] = hash;
	x.distinct++;
	return true;
}

/* ---- the interface ------------------------------------------------------------------------------------------------- */

/* What ends were seen is remembered: they are ends whatever the points of choice. */
static void begin_again(void)
{
	x.schedules = 0;
	x.choices.len = 0;
}

/* Operations to interleave, from the state as it is. counts: bit 0, only valid entries are counted. */
bool h_interleave(struct harness *h, const struct op *ops, u32 count, u32 bound, bool reduce, u32 counts,
		  u64 locked_mask, u64 locked_value)
{
	if (!count || count >= MOST_FIBERS || h->used + MOST_FIBERS * ARENA > h->limit)
		return false;
	cur = h;
	x.h = h;
	x.fibers = count;
	x.bound = bound;
	x.reduce = reduce;
	x.locked_mask = locked_mask;
	x.locked_value = locked_value;
	x.counts_valid = counts & 1;
	x.used = h->used;
	x.deferred = h->deferred.len;
	free(x.pages);
	free(x.contents);
	free(x.is_dirty);
	forget_locations();
	x.pages_known = x.used + MOST_FIBERS * ARENA;
	x.pages = malloc(x.used * sizeof(*x.pages));
	x.contents = malloc(x.used << PAGE_SHIFT);
	x.is_dirty = calloc(x.used, 1);
	x.locations = calloc(x.pages_known, sizeof(*x.locations));
	if (!x.pages || !x.contents || !x.is_dirty || !x.locations)
		abort();
	h->dumps++;
	x.broken.len = 0;
	for (u64 i = 0; i < root_pages(); i++)
		visit(pa_of(h->pgt.pgd) + i * PAGE_SIZE, (int)h->pgt.start_level, h->dumps);
	x.surplus.len = 0;
	for (size_t i = 0; i < x.used; i++)
		*PUSH(x.surplus) = h->pages[i].state != PAGE_USED || h->pages[i].seen == h->dumps ? surplus_of(h, i) : -1;
	memcpy(x.pages, h->pages, x.used * sizeof(*x.pages));
	memcpy(x.contents, h->memory, x.used << PAGE_SHIFT);
	x.dirty.len = 0;
	x.number = 0;
	for (u32 i = 0; i < MOST_FIBERS; i++) {
		struct fiber *fiber = &x.fiber[i];

		if (!fiber->stack) {
			fiber->stack = mmap(NULL, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			if (fiber->stack == MAP_FAILED)
				abort();
		}
		memset(&fiber->at, 0, sizeof(fiber->at));
		fiber->at.arena = x.used + i * ARENA;
		if (i < count)
			fiber->op = ops[i];
	}
	h->used = x.used + MOST_FIBERS * ARENA;
	free(x.seen);
	x.seen = NULL;
	x.seen_size = 0;
	x.distinct = 0;
	begin_again();
	return true;
}

enum { INTERLEAVE_DONE, INTERLEAVE_NEW, INTERLEAVE_LIMIT };

/* Go on until a schedule ends as none did before; its accesses, events, results and end state can be read then.
 * limit: stop after so many schedules in all (0: never). */
int h_interleave_next(struct harness *h, u64 limit)
{
	int found = INTERLEAVE_DONE;

	cur = h;
	catch_crashes(true);
	for (;;) {
		if (x.schedules && !backtrack()) {
			found = INTERLEAVE_DONE;
			break;
		}
		if (limit && x.schedules >= limit) {
			found = INTERLEAVE_LIMIT;
			break;
		}
		if (!(x.number & 0xff))
			watch(h->patience);
		restore();
		x.grown = false;
		run_schedule(0, false);
		x.schedules++;
		if (x.reduce && x.grown)
			begin_again();
		if (is_new()) {
			x.broken.len = 0;
			check_end();
			found = INTERLEAVE_NEW;
			break;
		}
	}
	watch(0);
	catch_crashes(false);
	return found;
}

/* One schedule as it was: `length` fibers, one for each access, local ones too. */
void h_interleave_replay(struct harness *h, const u8 *schedule, u64 length)
{
	bool reduce = x.reduce;

	cur = h;
	x.reduce = false;
	x.choices.len = 0;
	for (u64 i = 0; i < length; i++)
		*PUSH(x.choices) = (struct choice){ .chosen = schedule[i] };
	catch_crashes(true);
	watch(h->patience);
	restore();
	run_schedule(length, true);
	x.reduce = reduce;
	x.broken.len = 0;
	check_end();
	watch(0);
	catch_crashes(false);
	x.choices.len = 0;
}

/* The tables as they were before. */
void h_interleave_end(struct harness *h)
{
	cur = h;
	restore();
	h->used = x.used;
}

/* schedules, distinct ends, shared locations, points of choice of the last schedule. */
void h_interleave_figures(u64 *figures)
{
	u64 shared = 0;

	for (size_t page = 0; page < x.pages_known; page++)
		for (u32 i = 0; x.locations[page] && i < LOCATIONS; i++)
			shared += x.locations[page]->at[i].shared;
	figures[0] = x.schedules;
	figures[1] = x.distinct;
	figures[2] = shared;
	figures[3] = x.schedule.len;
}

const struct access *h_interleave_accesses(u64 *count)
{
	*count = x.accesses.len;
	return x.accesses.at;
}

const char *h_interleave_broken(u64 *count)
{
	*count = x.broken.len;
	return x.broken.at;
}

void h_interleave_results(struct result *results)
{
	for (u32 i = 0; i < x.fibers; i++)
		results[i] = x.fiber[i].result;
}

/* ---- accesses that go through no macro: pgtable.c compiled with -fsanitize=thread calls these ------------------------ */

static void plain(const void *va, bool write, const void *code)
{
	u64 offset;

	if (!interleaving)
		return;
	offset = (u64)((uintptr_t)va - (uintptr_t)x.h->memory);
	if (offset >> PAGE_SHIFT >= x.h->limit)
		return;
	interleave_point(write ? AC_STORE : AC_READ, pa_of(va) & ~7UL);
	if (x.h->pages[offset >> PAGE_SHIFT].state != PAGE_USED)
		fault(write ? FAULT_WRITE : FAULT_READ, pa_of(va) & ~7UL, code);
	/* The value that will be stored is not known here: the next access to the entry shows it. */
	interleave_done(write ? AC_STORE : AC_READ, pa_of(va) & ~7UL, *(const u64 *)((uintptr_t)va & ~7UL), 0);
}

#define CALLER	((const char *)__builtin_return_address(0) - 1)
#define TSAN(size)										\
	void __tsan_read##size(void *va) { plain(va, false, CALLER); }				\
	void __tsan_write##size(void *va) { plain(va, true, CALLER); }				\
	void __tsan_unaligned_read##size(void *va) { plain(va, false, CALLER); }		\
	void __tsan_unaligned_write##size(void *va) { plain(va, true, CALLER); }		\
	void __tsan_volatile_read##size(void *va) { plain(va, false, CALLER); }			\
	void __tsan_volatile_write##size(void *va) { plain(va, true, CALLER); }
TSAN(1)
TSAN(2)
TSAN(4)
TSAN(8)
TSAN(16)
void __tsan_read_range(void *va, size_t size) { plain(va, false, CALLER); }
void __tsan_write_range(void *va, size_t size) { plain(va, true, CALLER); }
void __tsan_func_entry(void *caller) { }
void __tsan_func_exit(void) { }
void __tsan_init(void) { }
void __tsan_vptr_update(void **slot, void *value) { }
