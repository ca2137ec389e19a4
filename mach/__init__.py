"""What the trainer, the shard servers and the aggregator share."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    __version__ = version("mach-fleet")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]

if _compiled := os.environ.get("MACH_COMPILED"):
    # Before anything imports Numba.
    from mach.compiled import adopt

    adopt(Path(_compiled))
