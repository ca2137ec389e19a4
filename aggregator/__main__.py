"""``python -m aggregator``."""

from __future__ import annotations

import sys

from aggregator.service import AggregatorService
from aggregator.settings import AggregatorSettings
from mach.serving import main

if __name__ == "__main__":
    sys.exit(
        main(
            AggregatorSettings,
            AggregatorService,
            component="aggregator",
            workers=lambda settings: settings.workers,
        )
    )
