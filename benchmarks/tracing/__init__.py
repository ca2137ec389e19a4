"""What tracing costs; run ``python -m benchmarks.tracing BUNDLE``."""
