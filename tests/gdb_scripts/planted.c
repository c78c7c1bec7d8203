/* Objects of KVM's types as several releases have them (docs/kernel.md 1.2, 1.3, 3.5); what is not looked at is left out. */
typedef unsigned long u64;
typedef u64 kvm_pte_t;
typedef struct { long counter; } atomic64_t;

enum kvm_pgtable_stage2_flags { KVM_PGTABLE_S2_IDMAP = 1, KVM_PGTABLE_S2_AS_S1 = 2 };
enum kvm_pgtable_walk_flags { KVM_PGTABLE_WALK_LEAF = 1, KVM_PGTABLE_WALK_SHARED = 8 };

struct kvm_s2_mmu;
struct kvm_pgtable {
	unsigned int ia_bits;
	signed char start_level;
	kvm_pte_t *pgd;
	struct kvm_s2_mmu *mmu;
	enum kvm_pgtable_stage2_flags flags;
};
struct kvm_vmid { atomic64_t id; };
struct kvm_s2_mmu {
	struct kvm_vmid vmid;
	u64 pgd_phys;
	struct kvm_pgtable *pgt;
	u64 vtcr;
};
struct kvm_pgtable_visit_ctx {
	kvm_pte_t *ptep;
	kvm_pte_t old;
	u64 start, addr, end;
	signed char level;
	enum kvm_pgtable_walk_flags flags;
};

struct kvm_pgtable pgt = { 40, 1, (kvm_pte_t *)0xffff000007d1f000, 0, KVM_PGTABLE_S2_AS_S1 };
struct kvm_s2_mmu mmu = { { { 0x100000d } }, 0x480fa000, &pgt, 0x802d3558 };
struct kvm_pgtable_visit_ctx ctx = {
	(kvm_pte_t *)0xffff000007d1f000, 0x0040000047a007d9, 0x80000000, 0x80005000, 0x80600000, 2, KVM_PGTABLE_WALK_SHARED,
};
kvm_pte_t table = 0x47d1f003, block = 0x0040000047a007d9, nothing;
u64 number = 3;
