"""``python -m mach``: the ``mach`` command."""

from mach.cli import main

main()
