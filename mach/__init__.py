"""What the trainer, the shard servers and the aggregator share."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mach.compiled import adopt, find_cache

try:
    __version__ = version("mach-fleet")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]

# Before anything imports Numba.
find_cache()
if _compiled := os.environ.get("MACH_COMPILED"):
    adopt(Path(_compiled))
