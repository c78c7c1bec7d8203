// SPDX-License-Identifier: GPL-2.0-or-later
/* Counts how often instructions run: a line "NAME ADDRESS" each in config=FILE, "NAME COUNT" each in out=FILE. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu_api.h"

static struct {
	char name[64];
	unsigned long long address, count;
} counted[64];
static int number;
static const char *out;

__attribute__((visibility("default"))) int qemu_plugin_version = API;

static void on_run(unsigned int cpu, void *data)
{
	__atomic_fetch_add((unsigned long long *)data, 1, __ATOMIC_RELAXED);
}

CALLBACK_TB(on_translation, tb)
{
	for (size_t i = 0; i < qemu_plugin_tb_n_insns(tb); i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);

		for (int j = 0; j < number; j++)
			if (qemu_plugin_insn_vaddr(insn) == counted[j].address)
				qemu_plugin_register_vcpu_insn_exec_cb(insn, on_run, CB_NO_REGS, &counted[j].count);
	}
}

CALLBACK_EXIT(on_end)
{
	FILE *file = fopen(out, "w");

	for (int i = 0; file && i < number; i++)
		fprintf(file, "%s %llu\n", counted[i].name, counted[i].count);
	if (file)
		fclose(file);
}

__attribute__((visibility("default"))) int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
	FILE *file = NULL;

	for (int i = 0; i < argc; i++) {
		if (!strncmp(argv[i], "config=", 7))
			file = fopen(argv[i] + 7, "r");
		else if (!strncmp(argv[i], "out=", 4))
			out = strdup(argv[i] + 4);
	}
	if (!file || !out)
		return -1;
	while (number < 64 && fscanf(file, "%63s %llx", counted[number].name, &counted[number].address) == 2)
		number++;
	fclose(file);
	REGISTER(vcpu_tb_trans_cb, id, on_translation);
	qemu_plugin_register_atexit_cb(id, on_end, NULL);
	return 0;
}
