// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What the compiler asks about each load and store of the kernel's code, and about what C leaves undefined.
 *
 * pgtable.c alone is compiled with -fsanitize=kernel-address, every check a call, and some of -fsanitize=undefined;
 * these are the callbacks, in place of the sanitizers' libraries. Legal are table pages while they are allocated, the
 * structures handed over, this library's own data, and the stack of the kernel's code, whose variables the compiler
 * fences by a shadow of its own: a byte of it for eight of memory, 0 where all of them may be used, 1 to 7 where only
 * the first may, else where none may (as in Documentation/dev-tools/kasan.rst). What memset and memcpy touch is not
 * looked at.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <sys/mman.h>

#include "harness.h"

#ifdef HARNESS_SANITIZE

#define CALLER		((const char *)__builtin_return_address(0) - 1)
#define SHADOW(at)	((signed char *)(((uintptr_t)(at) >> 3) + HARNESS_SHADOW))
#define STACK		(1UL << 20)	/* of it, as much as the kernel's code may use */

extern char _end[] __attribute__((visibility("hidden")));

static uintptr_t low, high;	/* the stack that has a shadow */
static uintptr_t image;		/* where this library begins */

/* Each operation begins with a stack of which all may be used. */
void sanitize_begin(const char *stack)
{
	uintptr_t top = ((uintptr_t)stack + 0xffff) & ~0xffffUL;
	Dl_info info;

	cur->at->stack = stack;
	if (top == high)
		return;
	low = top - STACK;
	high = top;
	if (mmap(SHADOW(low), STACK >> 3, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
		abort();
	if (dladdr(_end - 1, &info))
		image = (uintptr_t)info.dli_fbase;
}

/* The kernel's code was left in the middle: its variables are gone. */
void sanitize_abandon(void)
{
	memset(SHADOW(low), 0, STACK >> 3);
}

static bool within(uintptr_t at, size_t size, const void *start, size_t length)
{
	return at >= (uintptr_t)start && at + size <= (uintptr_t)start + length;
}

static bool is_handed_over(uintptr_t at, size_t size)
{
	const struct harness *h = cur;

	return within(at, size, &h->pgt, sizeof(h->pgt)) || within(at, size, &h->mmu, sizeof(h->mmu)) ||
	       within(at, size, &h->arch, sizeof(h->arch)) ||
#ifdef HAVE_MM_OPS
	       within(at, size, &h->ops, sizeof(h->ops)) ||
#else
	       within(at, size, &h->kvm, sizeof(h->kvm)) ||
#endif
	       within(at, size, &h->at->cache, sizeof(h->at->cache)) ||
	       within(at, size, (void *)image, (uintptr_t)_end - image);
}

static bool stack_allows(uintptr_t at, size_t size)
{
	for (uintptr_t last = at + size - 1, i = at & ~7UL; i <= last; i += 8) {
		signed char shadow = *SHADOW(i);

		if (shadow && (shadow < 0 || (signed char)((i + 7 <= last ? 7 : last & 7)) >= shadow))
			return false;
	}
	return true;
}

static void check(const void *va, size_t size, bool write, const void *code)
{
	uintptr_t at = (uintptr_t)va, here = (uintptr_t)__builtin_frame_address(0);
	size_t faults;
	u64 slot;

	if (!cur || !cur->at->result || !size)
		return;
	slot = (at - (uintptr_t)cur->memory) >> PAGE_SHIFT;
	if (slot <= 2 * cur->limit) {
		u64 pa = pa_of(va);
		const struct page *page = page_at(pa);

		if (!cur->owners[slot] || ((at + size - 1) ^ at) & PAGE_MASK) {
			fault(write ? FAULT_WILD_WRITE : FAULT_WILD_READ, pa, code);
		} else if (!page || page->state != PAGE_USED) {
			faults = cur->faults.len;
			/* READ_ONCE has said so already. */
			if (faults && cur->faults.at[faults - 1].pa == pa && cur->faults.at[faults - 1].kind == FAULT_READ)
				return;
			fault(write ? FAULT_WRITE : FAULT_READ, pa, code);
		}
	} else if (at >= here && at < (uintptr_t)cur->at->stack) {
		if (!stack_allows(at, size))
			fault(FAULT_STACK, 0, code);
	} else if (!is_handed_over(at, size)) {
		fault(write ? FAULT_WILD_WRITE : FAULT_WILD_READ, (u64)at >> 52 == 0x5ae ? pa_of(va) : 0, code);
	}
}

#define ASAN(size)											\
	void __asan_load##size##_noabort(const void *va) { check(va, size, false, CALLER); }		\
	void __asan_store##size##_noabort(const void *va) { check(va, size, true, CALLER); }
ASAN(1)
ASAN(2)
ASAN(4)
ASAN(8)
ASAN(16)
void __asan_loadN_noabort(const void *va, size_t size) { check(va, size, false, CALLER); }
void __asan_storeN_noabort(const void *va, size_t size) { check(va, size, true, CALLER); }
void __asan_handle_no_return(void) { }

/* A variable's scope begins and ends: sizes are multiples of 8 but for the last bytes of one that begins. */
void __asan_poison_stack_memory(char *va, size_t size)
{
	memset(SHADOW(va), 0xf8, (size + 7) >> 3);
}

void __asan_unpoison_stack_memory(char *va, size_t size)
{
	memset(SHADOW(va), 0, size >> 3);
	if (size & 7)
		*SHADOW(va + size) = size & 7;
}

/* In the order of UNDEFINED in inspector/crosscheck/harness.py. */
enum undefined { SHIFT, DIVISION, BOUNDS, VALUE, ALIGNMENT, LENGTH, UNREACHABLE };

void __ubsan_handle_shift_out_of_bounds(void *data, void *left, void *right) { fault(FAULT_UNDEFINED, SHIFT, CALLER); }
void __ubsan_handle_divrem_overflow(void *data, void *left, void *right) { fault(FAULT_UNDEFINED, DIVISION, CALLER); }
void __ubsan_handle_out_of_bounds(void *data, void *index) { fault(FAULT_UNDEFINED, BOUNDS, CALLER); }
void __ubsan_handle_load_invalid_value(void *data, void *value) { fault(FAULT_UNDEFINED, VALUE, CALLER); }
void __ubsan_handle_type_mismatch_v1(void *data, void *pointer) { fault(FAULT_UNDEFINED, ALIGNMENT, CALLER); }
void __ubsan_handle_vla_bound_not_positive(void *data, void *bound) { fault(FAULT_UNDEFINED, LENGTH, CALLER); }

void __ubsan_handle_builtin_unreachable(void *data)
{
	fault(FAULT_UNDEFINED, UNREACHABLE, CALLER);
	siglongjmp(cur->at->exit, 1);
}

#else

void sanitize_begin(const char *stack)
{
}

void sanitize_abandon(void)
{
}

#endif
