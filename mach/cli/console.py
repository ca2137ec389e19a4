"""Where commands print: results on standard output, everything else on standard error."""

from rich.console import Console

__all__ = ["err", "out"]

out = Console(soft_wrap=True)
err = Console(stderr=True)
