"""Accuracy and cost of this project's models beside other systems, on the same files.

``python -m benchmarks.accuracy --help``; see ``docs/benchmarks.md``.
"""
