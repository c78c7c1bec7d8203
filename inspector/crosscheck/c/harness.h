// SPDX-License-Identifier: GPL-2.0-or-later
/* What harness.c and interleave.c share: the interface's structures, the page store, the operation at hand. */
#ifndef HARNESS_H
#define HARNESS_H

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "shim.h"
#include <asm/kvm_pgtable.h>
#include <asm/stage2_pgtable.h>

#ifdef HAVE_SIGNED_LEVEL
typedef s8 level_t;
#else
typedef u32 level_t;
#endif

/* The order of inspector/events.py: a kind is a position in its EVENT_TYPES. */
enum event_kind {
	EV_STORE, EV_CASFAIL, EV_TLBI, EV_CACHE, EV_GET, EV_PUT, EV_ALLOC, EV_ALLOCFAIL, EV_ALLOC_EXACT,
	EV_FREE_EXACT, EV_FREE, EV_DEFER, EV_BARRIER, EV_CALL, EV_RET, EV_WARN,
};

struct event {
	u32 kind;
	u32 sub;		/* kind= of tlbi, cache, barrier; the operation of call */
	u64 a, b, c;
	s32 level;		/* NO_LEVEL: the event has none */
	u16 release, cas;
};

#define NO_LEVEL	INT_MIN

enum op_kind {
	OP_INIT = 1, OP_HYP_INIT, OP_DESTROY, OP_DESTROY_RANGE, OP_DESTROY_PGD, OP_HYP_DESTROY, OP_MAP, OP_UNMAP,
	OP_WRPROTECT, OP_MKYOUNG, OP_MKOLD, OP_IS_YOUNG, OP_TEST_CLEAR_YOUNG, OP_RELAX_PERMS, OP_FLUSH, OP_SET_OWNER,
	OP_ANNOTATE, OP_SPLIT, OP_CREATE_UNLINKED, OP_FREE_UNLINKED, OP_GET_LEAF, OP_HYP_MAP, OP_HYP_UNMAP, OP_RCU,
	OP_PEEK, OP_POKE, OP_REF, OP_COUNT
};

/* How a lost cmpxchg is brought about: what another CPU does to the entry just before. */
enum race_mode { RACE_VALUE, RACE_SET, RACE_CLEAR };

#define MC_NONE		(-1)	/* pass NULL for the memory cache */

struct op {
	u32 kind;
	s32 level;
	u64 addr, size, phys, prot, value;
	s64 mc;			/* pages in the memory cache, or MC_NONE */
	u32 flags;
	u32 fail_alloc;		/* the n-th allocation of this operation gives NULL; 0: none */
	u32 lose_cas;		/* another CPU is faster at the n-th cmpxchg of this operation; 0: none */
	u32 race_mode;
	u64 race_value;
};

enum result_flag { RESULT_UNSUPPORTED = 1, RESULT_NO_ENTRY = 2, RESULT_RACED = 4, RESULT_CRASHED = 8 };

struct result {
	s64 ret;
	u64 value;		/* an entry, or the address of an unlinked table */
	s32 level;
	u32 flags;
	u32 first_event, events;
	u32 warnings, faults;
};

enum page_state { PAGE_UNUSED, PAGE_USED, PAGE_FREE };

struct page {
	s32 count;
	u32 seen;		/* by the dump of that number */
	u8 state;
};

struct deferred {
	u64 pa;
	s32 level;
	u32 readers;		/* fibers that were inside when it was queued, and still are: its grace period lasts */
	u32 after[4];		/* what of each fiber happened before its end, see interleave.c */
};

/* What no correct user of pages does; the order of FAULTS in inspector/crosscheck/harness.py. */
enum fault_kind {
	FAULT_PUT, FAULT_GET, FAULT_COUNT, FAULT_READ, FAULT_WRITE, FAULT_FREE_EXACT, FAULT_CRASH, FAULT_STORE_FULL,
	FAULT_ENDLESS, FAULT_WILD_READ, FAULT_WILD_WRITE, FAULT_STACK, FAULT_UNDEFINED,
};

struct fault {
	u64 kind;
	u64 pa;			/* of the page or of the entry; FAULT_UNDEFINED: which kind, in the order of sanitize.c */
	u64 place;		/* of the instruction in pgtable.c, as an offset into this library; 0: not known */
};

#define VECTOR(type)	struct { type *at; size_t len, cap; }
#define PUSH(vec)	(vec_grow((void **)&(vec).at, &(vec).cap, (vec).len, sizeof(*(vec).at)), &(vec).at[(vec).len++])

void vec_grow(void **at, size_t *cap, size_t len, size_t size);

/* An operation while it runs. */
struct running {
	u64 effort;		/* loads and events it may still take */
	u32 fail_alloc, lose_cas, race_mode;
	u64 race_value;
	int rcu_depth;
	struct kvm_mmu_memory_cache cache;
	struct result *result;
	u32 fiber;		/* tag of its events: 0 for the first, and for a sequential one */
	size_t arena, arena_end; /* pages it may take that no other takes; both 0: the next free one of the store */
	sigjmp_buf exit;	/* where a crash, or a walk without end, goes on */
	const char *stack;	/* where the stack of the kernel's code begins (it grows down) */
};

/* Bytes between the structures that are handed to the kernel's code, none of its business. */
#ifdef HARNESS_SANITIZE
#define REDZONE(name)	char name[64];
#else
#define REDZONE(name)
#endif

struct harness {
	struct kvm_pgtable pgt;
	REDZONE(after_pgt)
	struct kvm_s2_mmu mmu;
	REDZONE(after_mmu)
	struct kvm_arch arch;
	REDZONE(after_arch)
#ifdef HAVE_MM_OPS
	struct kvm_pgtable_mm_ops ops;
#else
	struct kvm kvm;
#endif
	REDZONE(after_ops)
	bool is_hyp;

	/* The page store. */
	char *memory;
	u64 base;		/* "physical" address of its first page */
	size_t limit;		/* pages */
	size_t used;		/* pages ever handed out */
	struct page *pages;
#ifdef HARNESS_SANITIZE
	u32 *slots;		/* where in memory a page lies; 0: nowhere yet */
	u32 *owners;		/* whose a place in memory is, counted from 1; 0: nobody's, a red zone */
	u32 next_slot;
#endif
	VECTOR(u32) unused;	/* freed pages, the last freed first */
	u32 outstanding;
	u32 dumps;

	/* Switches. */
	bool capability[ARM64_WORKAROUND_AMPERE_AC03_CPU_38 + 1];
	bool rcu_at_once;
	bool reuse;		/* hand out freed pages again */
	int force_pte;		/* what force_pte_cb says */
	int patience;		/* milliseconds of the processor that an operation may take */
	bool keep_places;

	struct running sequential, *at;	/* the operation at hand: one after the other, or one of several fibers */

	VECTOR(struct deferred) deferred;
	VECTOR(struct fault) faults;	/* of the run at hand */
	VECTOR(struct event) events;
	VECTOR(u64) places;	/* of the events, as of faults, while keep_places */
	VECTOR(struct op) ops_log;	/* of the run at hand, for the text of call events */
	VECTOR(char) text;
	VECTOR(u64) words;
};

extern struct harness *cur;

u64 pa_of(const void *va);
void *va_of(u64 pa);
struct page *page_at(u64 pa);
void fault(enum fault_kind kind, u64 pa, const void *code);
s64 guarded_op(struct harness *h, const struct op *op);
void begin_op(struct harness *h, struct running *at, const struct op *op, struct result *result);
void catch_crashes(bool on);
void watch(int patience);
bool is_table(u64 pte, int level);
void sanitize_begin(const char *stack);
void sanitize_abandon(void);
u64 root_pages(void);
#ifndef HAVE_MM_OPS
u64 kvm_pte_to_phys(kvm_pte_t pte);
#endif

/* A shared access is about to happen: with fibers, another one may go first. */
enum access_kind { AC_READ, AC_STORE, AC_CAS, AC_CASFAIL, AC_GET, AC_PUT, AC_COUNT };
extern bool interleaving;
void interleave_point(enum access_kind kind, u64 pa);
void interleave_done(enum access_kind kind, u64 pa, u64 old, u64 value);
void interleave_rcu(int depth);
u32 interleave_readers(void);
#define POINT(kind, pa)			do { if (interleaving) interleave_point((kind), (pa)); } while (0)
#define DONE(kind, pa, old, value)	do { if (interleaving) interleave_done((kind), (pa), (old), (value)); } while (0)

#endif
