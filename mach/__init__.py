"""What the trainer, the shard servers and the aggregator share."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mach-fleet")
except PackageNotFoundError:  # running from a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
