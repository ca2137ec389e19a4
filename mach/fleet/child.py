"""``python -m mach.fleet.child MODULE ARGUMENTS…``: a server that ends with its supervisor."""

from __future__ import annotations

import runpy
import sys

from mach.processes import end_with_parent


def main() -> None:
    """Become the module named."""
    end_with_parent()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
