"""Child processes that end with their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

__all__ = ["end_with_parent"]

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int | None = None) -> None:
    """Have Linux send this process a SIGTERM when its parent ends; call it first in a child.

    A parent that is killed cannot stop its children. The child asks for itself, since code
    between fork and exec is unsafe with threads.

    Args:
        parent: its process id, if known: a parent that has ended already ends the child at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if parent is not None and os.getppid() != parent:
        sys.exit(1)
