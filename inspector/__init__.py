"""kvm-stage2-inspector: the truth about KVM/arm64 stage-2 page tables, read live through gdb.

The rooms and who may import whom: ``codec``, ``events`` and ``findings`` are the ground floor (standard library
only); ``generations`` and ``tables`` stand on the codec; ``target`` and ``symbols`` reach the machine and its kernel's
symbols; ``kernel`` gives typed views of the host kernel; ``capture`` freezes one instant; ``check`` judges captures;
``model`` is the kernel's page-table code in Python; ``compare`` holds captures against it and against each other;
``report`` prints; ``cli`` is the command line.
"""

__version__ = "0.1.0"
__released__ = "2026-11-28"
"""When this version was last added to: as in CHANGELOG.md."""
