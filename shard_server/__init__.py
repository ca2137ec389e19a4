"""One repetition of a bundle, or a few, behind gRPC: ``python -m shard_server --help``.

:mod:`shard_server.batcher` queues requests and runs them together,
:mod:`shard_server.core` checks them and holds the bundle versions; neither knows gRPC.
:mod:`shard_server.servicer` and :mod:`shard_server.stream` speak ``mach.v1.ShardService``.
"""
