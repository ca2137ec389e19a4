"""What a GPU is measured with: one command each, results in ``benchmarks/results/gpu-*.json``.

    python -m benchmarks.gpu.serve      # the classifiers of a shard, six ways
    python -m benchmarks.gpu.merge      # the exact top-k over 49.46 million products
    python -m benchmarks.gpu.train      # seconds per million queries, and an epoch projected

Each takes ``--smoke``, which runs everything in a tiny size on a CPU. ``docs/gpu.md`` explains
them; :mod:`benchmarks.gpu.device` says what the numbers are held against.
"""
