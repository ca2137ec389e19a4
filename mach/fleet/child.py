"""``python -m mach.fleet.child MODULE ARGUMENTS…``: a server that ends with its supervisor.

A supervisor that is killed cannot stop its children, so each asks Linux for a SIGTERM when
the parent ends. It asks itself, since code between fork and exec is unsafe with threads.
"""

from __future__ import annotations

import ctypes
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the module named."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
