"""Ratios that must hold; run with ``python -m pytest tests/benchmarks``."""
