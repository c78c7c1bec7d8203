"""Tests of crosscheck: the model against the kernel's own C, kernels that are wrong, models that are wrong."""
