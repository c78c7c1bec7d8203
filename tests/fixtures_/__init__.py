"""Tests of what the live tests stand on: the exerciser's ground truth, kernels, harness."""
