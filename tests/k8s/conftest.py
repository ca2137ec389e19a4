"""Helm and hadolint come as compiled packages, which not every platform has."""

from __future__ import annotations

import platform
import sys

#: As the markers of these packages in pyproject.toml say.
if sys.platform == "linux" and platform.machine() != "x86_64":
    collect_ignore_glob = ["test_*.py"]
