"""The ``mach`` command. One module a command; each adds itself with ``register(app)``."""

from mach.cli.app import main

__all__ = ["main"]
