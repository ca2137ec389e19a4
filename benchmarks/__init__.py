"""Benchmarks: each writes what it measured to ``benchmarks/results``."""
