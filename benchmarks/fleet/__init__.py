"""Benchmarks of serving: one script a question, all of them by ``python -m benchmarks.fleet``."""
