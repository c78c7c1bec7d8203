"""Tests of the model: against the kernel's own C, against an abstract map, against its own mutations."""
