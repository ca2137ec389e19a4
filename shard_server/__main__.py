"""``python -m shard_server``: see ``--help``."""

import sys

from mach.serving import main
from shard_server.service import ShardService
from shard_server.settings import ShardSettings

if __name__ == "__main__":
    sys.exit(main(ShardSettings, ShardService, component="shard_server"))
