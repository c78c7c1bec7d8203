"""Typed, read-only views of the host kernel, from physical memory alone.

Every kernel virtual address is translated by walking the kernel's own page tables, so it makes no difference
what the stopped CPUs happen to run.  This room reads; it judges nothing.
"""
