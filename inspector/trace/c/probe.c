// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A TCG plugin that writes down what chosen instructions do: no policy is here, see inspector/trace/plan.py.
 *
 * config=FILE says where to look, a line each, addresses in hexadecimal:
 *	p ADDRESS NUMBER REGISTERS FRAMES	when this instruction is about to run: x0 and on, so many return addresses
 *					of its callers' frames, x30, sp; then all is written out when NUMBER is EXIT or above
 *	s LOW HIGH			stores by instructions of this range
 *	m LOW HIGH			... to these addresses alone
 *	i LOW HIGH			TLBI, IC, DC, barriers, HVC and writes of system registers in this range
 *	a ADDRESS WORD WORD WORD	instructions at the entry of a function that runs once, where the kernel was
 *					moved to: by how much all of these addresses are off (KASLR)
 *	v ADDRESS			the vectors that EL2 has where it is not the kernel's own level (nVHE)
 *	h LOW HIGH			code that EL2 runs then, elsewhere in its own map: p and i within it are looked for there
 *	o ADDRESS OFFSET		at that probe the word in memory at x0 and so many bytes is told too, after the
 *					registers; ones in all bits where it cannot be read
 *	r NAME				a register whose value is told once, before everything else, in the order of these lines
 * out=FILE gets the records: kind, CPU, number of words (8, 8, 16 bits), number (32 bits), the words (64 bits each).
 *
 * Each record is written under a lock: what one CPU does is in its order, and what several do in the order in which they
 * came to the lock, which for a store is after it was made.
 *
 * A CPU that comes to rest has everything written out, and a mark (kind 5, MARK) after it unless one is there.  QEMU has
 * every CPU come to rest when the machine is stopped, so that of a stopped machine out= ends with a mark, and all that
 * was done before is in front of it.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu_api.h"

#define MOST_CPUS	64
#define MOST_RANGES	128
#define MOST_REGISTERS	8
#define MOST_FRAMES	12
#define MOST_TOLD	8
#define EXIT		1000
#define MARK		0x4b52414d

enum { RECORD_PROBE = 1, RECORD_STORE, RECORD_INSTRUCTION, RECORD_REGISTERS, RECORD_MARK };

struct probe {
	uint64_t address;
	uint32_t number, registers, frames, offset;
};

struct ranges {
	size_t count;
	struct {
		uint64_t low, high;
	} at[MOST_RANGES];
};

struct head {
	uint8_t kind, cpu;
	uint16_t words;
	uint32_t number;
};

__attribute__((visibility("default"))) int qemu_plugin_version = API;

static struct probe *probes;
static size_t probe_count;
static struct ranges stores, memory, instructions, hyp;
static struct {
	uint64_t address;
	uint32_t words[3];
} anchor;
static uint64_t vectors, hyp_offset;
static bool hyp_known;
static struct qemu_plugin_register *vbar;
static uint64_t slide;
static bool has_told;
static struct qemu_plugin_register *registers[32];	/* x0 to x30, sp */
static GByteArray *buffers[MOST_CPUS];
static char told_names[MOST_TOLD][64];
static struct qemu_plugin_register *told[MOST_TOLD];
static size_t told_count;
static FILE *out;
static bool marked = true;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static bool within(const struct ranges *ranges, uint64_t address)
{
	for (size_t i = 0; i < ranges->count; i++)
		if (address >= ranges->at[i].low && address < ranges->at[i].high)
			return true;
	return false;
}

static void record(unsigned int kind, unsigned int cpu, uint32_t number, const uint64_t *words, unsigned int count)
{
	struct head head = { .kind = kind, .cpu = cpu, .words = count, .number = number };

	pthread_mutex_lock(&lock);
	fwrite(&head, sizeof(head), 1, out);
	fwrite(words, sizeof(*words), count, out);
	marked = false;
	/* Who reads along gets whole operations; what a killed QEMU has not written is less than one. */
	if (kind == RECORD_PROBE && number >= EXIT)
		fflush(out);
	pthread_mutex_unlock(&lock);
}

static uint64_t read_register(unsigned int cpu, struct qemu_plugin_register *handle)
{
	uint64_t value = 0;

	if (!handle)
		return 0;
	g_byte_array_set_size(buffers[cpu], 0);
	/* What it returns is the number of bytes in 10.0, and not in 11.1. */
	qemu_plugin_read_register(handle, buffers[cpu]);
	if (buffers[cpu]->len >= sizeof(value))
		memcpy(&value, buffers[cpu]->data, sizeof(value));
	return value;
}

static uint64_t value_of(unsigned int cpu, unsigned int number)
{
	return read_register(cpu, registers[number]);
}

/* Low bits of addresses that are the same in every map: images are aligned to 64K at least. */
#define IN_IMAGE	0xffff

/* Before the first operation EL2 has its vectors, and has invalidated nothing of a guest's. */
static void find_hyp(unsigned int cpu)
{
	uint64_t value;

	if (hyp_known || !vectors)
		return;
	value = read_register(cpu, vbar);
	/* VHE: EL2 is the kernel's own level, from its start. */
	if (value >> 63)
		vectors = 0;
	if (!vectors || (value & IN_IMAGE) != (vectors & IN_IMAGE))
		return;
	hyp_offset = value - vectors;
	hyp_known = true;
}

/* ID registers are the same on every CPU of QEMU's, at any time: whoever comes first tells them. */
static void tell_registers(unsigned int cpu)
{
	uint64_t words[MOST_TOLD + 1];

	if (__atomic_test_and_set(&has_told, __ATOMIC_RELAXED))
		return;
	for (size_t i = 0; i < told_count; i++)
		words[i] = read_register(cpu, told[i]);
	words[told_count] = value_of(cpu, 31);
	record(RECORD_REGISTERS, cpu, 0, words, told_count + 1);
}

static bool read_words(unsigned int cpu, uint64_t address, uint64_t *words, size_t count)
{
	g_byte_array_set_size(buffers[cpu], 0);
	if (!qemu_plugin_read_memory_vaddr(address, buffers[cpu], count * sizeof(*words)) ||
	    buffers[cpu]->len != count * sizeof(*words))
		return false;
	memcpy(words, buffers[cpu]->data, count * sizeof(*words));
	return true;
}

/*
 * A return address may be signed (PACIASP), in the bits above those of virtual addresses; all of the kernel's text has
 * ones there: as many as where it is linked.
 */
static uint64_t unsigned_link(uint64_t address)
{
	return (address | ~0ull << (64 - __builtin_clzll(~stores.at[0].low))) - slide;
}

/* AAPCS64: x29 points to a record of the caller's x29 and x30, and each to the next, higher up on the stack. */
static unsigned int read_frames(unsigned int cpu, unsigned int most, uint64_t *found)
{
	uint64_t at = value_of(cpu, 29), record[2];
	unsigned int count = 0;

	while (count < most && at >> 63 && !(at & 7) && read_words(cpu, at, record, 2) && record[1]) {
		found[count++] = unsigned_link(record[1]);
		if (record[0] <= at)
			break;
		at = record[0];
	}
	return count;
}

static void on_probe(unsigned int cpu, void *data)
{
	const struct probe *probe = data;
	uint64_t words[MOST_REGISTERS + 1 + MOST_FRAMES + 2];
	unsigned int count = probe->registers;

	tell_registers(cpu);
	find_hyp(cpu);
	for (unsigned int i = 0; i < count; i++)
		words[i] = value_of(cpu, i);
	if (probe->offset && !read_words(cpu, words[0] + probe->offset, &words[count++], 1))
		words[count - 1] = ~0ull;
	if (probe->frames) {
		words[count++] = unsigned_link(value_of(cpu, 30));
		count += read_frames(cpu, probe->frames - 1, words + count);
	}
	words[count] = value_of(cpu, 30);
	words[count + 1] = value_of(cpu, 31);
	record(RECORD_PROBE, cpu, probe->number, words, count + 2);
}

/* DDI 0487 C4.1, of 64 bits: CAS; LDXR and LDAXR; STXR and STLXR. */
enum access { PLAIN, COMPARE_AND_SWAP, LOAD_EXCLUSIVE, STORE_EXCLUSIVE };

static enum access access_of(uint32_t code)
{
	if ((code & 0xffa07c00) == 0xc8a07c00)
		return COMPARE_AND_SWAP;
	if ((code & 0xfffffc00) == 0xc85f7c00 || (code & 0xfffffc00) == 0xc85ffc00)
		return LOAD_EXCLUSIVE;
	if ((code & 0xffe07c00) == 0xc8007c00)
		return STORE_EXCLUSIVE;
	return PLAIN;
}

/* An instruction that reads or writes memory. */
struct accessing {
	uint64_t address;
	uint32_t code;
	enum access access;
};

/* What each CPU's last conditional store, and its last exclusive load, found in memory. */
static uint64_t found_by[MOST_CPUS], monitored_by[MOST_CPUS];

/*
 * A store on a condition is a read and a write to QEMU, which tells both whether it is made or not: the value read is
 * the one that was compared, at one instant with the store.  What the memory holds by now may be another CPU's.
 */
static void on_access(unsigned int cpu, uint32_t info, uint64_t address, void *data)
{
	const struct accessing *access = data;
	struct qemu_plugin_hwaddr *place;
	struct mem_value value;
	uint64_t found = 0, compared = 0;

	if (!within(&memory, address))
		return;
	value = qemu_plugin_mem_get_value(info);
	if (!qemu_plugin_mem_is_store(info)) {
		found_by[cpu] = value.data.u64;
		if (access->access == LOAD_EXCLUSIVE)
			monitored_by[cpu] = value.data.u64;
		return;
	}
	place = qemu_plugin_get_hwaddr(info, address);
	if (access->access != PLAIN) {
		unsigned int expected = access->code >> 16 & 31, wanted = access->code & 31;
		found = found_by[cpu];
		/* Its register has not yet got what was found. */
		if (access->access == COMPARE_AND_SWAP)
			compared = expected == 31 ? 0 : value_of(cpu, expected);
		else
			compared = monitored_by[cpu];
		value.data.u128.low = wanted == 31 ? 0 : value_of(cpu, wanted);
	}
	/* A pair of registers is two words next to each other; a store on a condition was made if the two are equal. */
	const uint64_t words[] = {
		address, place ? qemu_plugin_hwaddr_phys_addr(place) : 0, value.data.u128.low, value.data.u128.high,
		found, access->address, compared, value_of(cpu, 31),
	};

	record(RECORD_STORE, cpu, value.type, words, sizeof(words) / sizeof(*words));
}

static void on_instruction(unsigned int cpu, void *data)
{
	uint32_t code = (uintptr_t)data;
	const uint64_t words[] = { code, (code & 31) == 31 ? 0 : value_of(cpu, code & 31), value_of(cpu, 31) };

	record(RECORD_INSTRUCTION, cpu, 0, words, sizeof(words) / sizeof(*words));
}

static int by_address(const void *a, const void *b)
{
	const struct probe *one = a, *other = b;

	return one->address < other->address ? -1 : one->address > other->address;
}

/* DDI 0487 C4.1: SYS (TLBI, IC, DC), the barriers, MSR of a register, HVC. */
static bool is_told(uint32_t code)
{
	return (code & 0xfff80000) == 0xd5080000 || (code & 0xfffff01f) == 0xd503301f ||
	       (code & 0xfff00000) == 0xd5100000 || (code & 0xffe0001f) == 0xd4000002;
}

static uint32_t code_of(struct qemu_plugin_insn *insn)
{
	uint32_t code = 0;

	qemu_plugin_insn_data(insn, &code, sizeof(code));
	return code;
}

/* One for each instruction, however often it is translated. */
static struct accessing *access_at(uint64_t address, struct qemu_plugin_insn *insn)
{
	static struct accessing **known;
	static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
	size_t at = (address - stores.at[0].low) / 4;
	struct accessing *access;

	pthread_mutex_lock(&guard);
	if (!known)
		known = calloc((stores.at[0].high - stores.at[0].low) / 4, sizeof(*known));
	access = known[at];
	if (!access) {
		access = calloc(1, sizeof(*access));
		access->address = address;
		access->code = code_of(insn);
		access->access = access_of(access->code);
		known[at] = access;
	}
	pthread_mutex_unlock(&guard);
	return access;
}

/* 6.1 and older run it where they are linked first, and again where they moved to. */
static void find_slide(struct qemu_plugin_tb *tb, size_t count)
{
	uint64_t address = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, 0));

	/* A guest may run the same kernel, elsewhere: the host has made VMs by then, and probes have been met. */
	if (has_told || !anchor.address || count < 3 || !(address >> 63) || (address & IN_IMAGE) != (anchor.address & IN_IMAGE))
		return;
	for (size_t i = 0; i < 3; i++)
		if (code_of(qemu_plugin_tb_get_insn(tb, i)) != anchor.words[i])
			return;
	slide = address - anchor.address;
}

/* Where the instruction is linked; 0 of what is not the kernel's. */
static uint64_t linked_at(struct qemu_plugin_insn *insn)
{
	uint64_t address = qemu_plugin_insn_vaddr(insn);

	if (address >> 63)
		return address - slide;
	if (hyp_known && within(&hyp, address - hyp_offset))
		return address - hyp_offset;
	return 0;
}

CALLBACK_TB(on_translation, tb)
{
	size_t count = qemu_plugin_tb_n_insns(tb);

	find_slide(tb, count);
	for (size_t i = 0; i < count; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		const struct probe key = { .address = linked_at(insn) };
		struct probe *probe;
		uint32_t code = 0;

		if (!key.address)
			continue;
		probe = bsearch(&key, probes, probe_count, sizeof(key), by_address);
		if (probe)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_probe, CB_R_REGS, probe);
		if (within(&stores, key.address)) {
			struct accessing *access = access_at(key.address, insn);

			qemu_plugin_register_vcpu_mem_cb(insn, on_access, CB_R_REGS,
							 access->access == PLAIN ? MEM_W : MEM_RW, access);
		}
		if (within(&instructions, key.address) &&
		    qemu_plugin_insn_data(insn, &code, sizeof(code)) == sizeof(code) && is_told(code))
			qemu_plugin_register_vcpu_insn_exec_cb(insn, on_instruction, CB_R_REGS,
							       (void *)(uintptr_t)code);
	}
}

CALLBACK_CPU(on_cpu, cpu)
{
	GArray *found = qemu_plugin_get_registers();
	unsigned int size = g_array_get_element_size(found);

	if (cpu >= MOST_CPUS)
		abort();
	buffers[cpu] = g_byte_array_new();
	for (unsigned int i = 0; i < found->len; i++) {
		const struct reg_descriptor *one = (const void *)(found->data + i * size);
		char *end;
		long number;

		if (!strcmp(one->name, "sp"))
			registers[31] = one->handle;
		if (!strcmp(one->name, "VBAR_EL2"))
			vbar = one->handle;
		for (size_t k = 0; k < told_count; k++)
			if (!strcmp(one->name, told_names[k]))
				told[k] = one->handle;
		if (one->name[0] != 'x')
			continue;
		number = strtol(one->name + 1, &end, 10);
		if (end != one->name + 1 && !*end && number < 31)
			registers[number] = one->handle;
	}
}

CALLBACK_CPU(on_idle, cpu)
{
	const struct head head = { .kind = RECORD_MARK, .cpu = cpu, .number = MARK };

	pthread_mutex_lock(&lock);
	if (!marked) {
		fwrite(&head, sizeof(head), 1, out);
		fflush(out);
		marked = true;
	}
	pthread_mutex_unlock(&lock);
}

CALLBACK_EXIT(on_end)
{
	fflush(out);
}

static bool add_range(struct ranges *ranges, uint64_t low, uint64_t high)
{
	if (ranges->count == MOST_RANGES)
		return false;
	ranges->at[ranges->count].low = low;
	ranges->at[ranges->count++].high = high;
	return true;
}

static bool read_line(const char *line)
{
	unsigned long long a, b;
	unsigned int number, count, frames;
	char what;

	if (sscanf(line, "p %llx %u %u %u", &a, &number, &count, &frames) == 4 && count <= MOST_REGISTERS &&
	    frames <= MOST_FRAMES) {
		probes = realloc(probes, (probe_count + 1) * sizeof(*probes));
		if (!probes)
			return false;
		probes[probe_count++] = (struct probe){ a, number, count, frames, 0 };
		return true;
	}
	if (sscanf(line, "o %llx %llx", &a, &b) == 2) {
		for (size_t i = 0; i < probe_count; i++)
			if (probes[i].address == a && probes[i].registers)
				probes[i].offset = b;
		return true;
	}
	if (sscanf(line, "a %llx %x %x %x", &a, &anchor.words[0], &anchor.words[1], &anchor.words[2]) == 4) {
		anchor.address = a;
		return true;
	}
	if (sscanf(line, "v %llx", &a) == 1) {
		vectors = a;
		return true;
	}
	if (told_count < MOST_TOLD && sscanf(line, "r %63s", told_names[told_count]) == 1) {
		told_count++;
		return true;
	}
	if (sscanf(line, "%c %llx %llx", &what, &a, &b) != 3)
		return false;
	/* Of stores there is one range: access_at() counts on it. */
	return what == 's' ? !stores.count && b > a && add_range(&stores, a, b) : what == 'm' ? add_range(&memory, a, b) :
	       what == 'h' ? add_range(&hyp, a, b) : what == 'i' && add_range(&instructions, a, b);
}

static bool read_config(const char *name)
{
	FILE *file = fopen(name, "r");
	bool good = file;
	char line[128];

	while (good && fgets(line, sizeof(line), file))
		good = read_line(line);
	if (file)
		fclose(file);
	qsort(probes, probe_count, sizeof(*probes), by_address);
	return good;
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
	bool configured = false;

	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "config=", 7))
			configured = read_config(argv[i] + 7);
		else if (!strncmp(argv[i], "out=", 4))
			out = fopen(argv[i] + 4, "w");
	}
	if (!configured || !out) {
		qemu_plugin_outs("probe: config= or out= cannot be used\n");
		return -1;
	}
	REGISTER(vcpu_init_cb, id, on_cpu);
	REGISTER(vcpu_idle_cb, id, on_idle);
	REGISTER(vcpu_tb_trans_cb, id, on_translation);
	qemu_plugin_register_atexit_cb(id, on_end, NULL);
	return 0;
}
