"""The seam between the fan-out and the shards.

A :class:`ShardTransport` is one connection to one shard. Three implementations: gRPC with one
long-lived stream (the default, the cheapest by measurement), gRPC with a call a message, and
one that runs the classifiers in this process. A fourth stands around one of the first two where
certificates may be replaced.
"""

from aggregator.transport.base import (
    Done,
    Payload,
    ShardDescription,
    ShardTransport,
    Withdraw,
)
from aggregator.transport.inprocess import InProcessTransport
from aggregator.transport.renewing import RenewingTransport
from aggregator.transport.stream import StreamTransport
from aggregator.transport.unary import UnaryTransport

__all__ = [
    "Done",
    "InProcessTransport",
    "Payload",
    "RenewingTransport",
    "ShardDescription",
    "ShardTransport",
    "StreamTransport",
    "UnaryTransport",
    "Withdraw",
]
