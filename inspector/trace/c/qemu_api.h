// SPDX-License-Identifier: GPL-2.0-or-later
/* The part of QEMU's plugin interface that the probe uses, declared by hand: no distribution packages the header. */
#ifndef QEMU_API_H
#define QEMU_API_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* 4 (QEMU 10.0) to 6: what is called back is given the plugin's number first. From 7 (QEMU 11) on it is given the pointer
 * that was registered with it, where it is given one at all. */
#ifndef API
#error "say which interface: -DAPI=4 or -DAPI=7"
#endif

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_hwaddr;
struct qemu_plugin_register;

/* glib's, as far as they are looked into. */
typedef struct {
	char *data;
	unsigned int len;
} GArray;
typedef struct {
	uint8_t *data;
	unsigned int len;
} GByteArray;
GByteArray *g_byte_array_new(void);
GByteArray *g_byte_array_set_size(GByteArray *array, unsigned int length);
unsigned int g_array_get_element_size(GArray *array);

/* Newer interfaces have more members: step by the element's size. */
struct reg_descriptor { struct qemu_plugin_register *handle; const char *name, *feature; };
struct mem_value {
	int type;
	union {
		uint8_t u8;
		uint16_t u16;
		uint32_t u32;
		uint64_t u64;
		struct {
			uint64_t low, high;
		} u128;
	} data;
};

enum { CB_NO_REGS, CB_R_REGS, CB_RW_REGS };
enum { MEM_R = 1, MEM_W = 2, MEM_RW = 3 };

#if API >= 7
#define REGISTER(what, id, cb)	qemu_plugin_register_##what((id), (cb), NULL)
void qemu_plugin_register_vcpu_init_cb(plugin_id id, void (*cb)(unsigned int, void *), void *data);
void qemu_plugin_register_vcpu_idle_cb(plugin_id id, void (*cb)(unsigned int, void *), void *data);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*cb)(struct qemu_plugin_tb *, void *), void *data);
void qemu_plugin_register_atexit_cb(plugin_id id, void (*cb)(void *), void *data);
#define CALLBACK_CPU(name, cpu)	static void name(unsigned int cpu, void *unused)
#define CALLBACK_TB(name, tb)	static void name(struct qemu_plugin_tb *tb, void *unused)
#define CALLBACK_EXIT(name)	static void name(void *unused)
#else
#define REGISTER(what, id, cb)	qemu_plugin_register_##what((id), (cb))
void qemu_plugin_register_vcpu_init_cb(plugin_id id, void (*cb)(plugin_id, unsigned int));
void qemu_plugin_register_vcpu_idle_cb(plugin_id id, void (*cb)(plugin_id, unsigned int));
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*cb)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_atexit_cb(plugin_id id, void (*cb)(plugin_id, void *), void *data);
#define CALLBACK_CPU(name, cpu)	static void name(plugin_id unused, unsigned int cpu)
#define CALLBACK_TB(name, tb)	static void name(plugin_id unused, struct qemu_plugin_tb *tb)
#define CALLBACK_EXIT(name)	static void name(plugin_id unused, void *unused_too)
#endif
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, void (*cb)(unsigned int, void *), int flags,
					    void *data);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn,
				      void (*cb)(unsigned int, uint32_t, uint64_t, void *), int flags, int rw,
				      void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *to, size_t length);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
bool qemu_plugin_mem_is_store(uint32_t info);
struct mem_value qemu_plugin_mem_get_value(uint32_t info);
struct qemu_plugin_hwaddr *qemu_plugin_get_hwaddr(uint32_t info, uint64_t vaddr);
uint64_t qemu_plugin_hwaddr_phys_addr(const struct qemu_plugin_hwaddr *address);
bool qemu_plugin_read_memory_vaddr(uint64_t address, GByteArray *to, size_t length);
GArray *qemu_plugin_get_registers(void);
int qemu_plugin_read_register(struct qemu_plugin_register *handle, GByteArray *to);
void qemu_plugin_outs(const char *text);
#endif
