"""What a shard server costs beside its inference."""
