// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Types with every feature the DWARF reader has to understand, and objects from which the compiler itself tells where
 * it put their members: each probe has one member set to all ones, the rest zero.
 */
typedef unsigned long u64;
typedef unsigned char u8;

enum colour { RED, GREEN = 7, BLUE = -3 };
enum far { NEAR, FAR = 1ul << 40 };

struct hidden;

struct leaf {
	u64 first;
	union {
		struct {
			unsigned int low : 5;
			unsigned int : 3;
			unsigned int high : 11;
			u8 byte;
		};
		u64 whole;
	};
	u8 tail : 4;
};

typedef const volatile struct leaf leaf_t;

union either {
	u8 bytes[12];
	u64 number;
};

struct shapes {
	leaf_t leaf;
	struct {
		int inner;
		short level : 9;
	} named;
	struct leaf *pointer;
	struct hidden *hidden;
	int (*call)(struct shapes *self);
	void *nothing;
	u8 table[3][5];
	leaf_t pair[2];
	union either either;
	enum colour colour;
	enum far far;
	_Bool flag;
	signed char sign;
	double real;
	unsigned __int128 wide;
	u8 flexible[];
};

#define PROBE(name, path, value) struct shapes probe_##name = { .path = value }
PROBE(leaf_first, leaf.first, ~0ul);
PROBE(leaf_low, leaf.low, 0x1f);
PROBE(leaf_high, leaf.high, 0x7ff);
PROBE(leaf_byte, leaf.byte, 0xff);
PROBE(leaf_whole, leaf.whole, ~0ul);
PROBE(leaf_tail, leaf.tail, 0xf);
PROBE(named_inner, named.inner, -1);
PROBE(named_level, named.level, -1);
PROBE(either_number, either.number, ~0ul);
PROBE(colour, colour, (enum colour)-1);
PROBE(sign, sign, -1);

const u64 size_of_shapes = sizeof(struct shapes);
const u64 size_of_leaf = sizeof(struct leaf);
const u64 offset_of_table = __builtin_offsetof(struct shapes, table);
const u64 offset_of_pair = __builtin_offsetof(struct shapes, pair);
const u64 offset_of_far = __builtin_offsetof(struct shapes, far);
const u64 offset_of_real = __builtin_offsetof(struct shapes, real);
const u64 offset_of_wide = __builtin_offsetof(struct shapes, wide);
const u64 offset_of_flexible = __builtin_offsetof(struct shapes, flexible);

int kvm_vm_release(struct shapes *shapes)
{
	return shapes->call(shapes);
}
