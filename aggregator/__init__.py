"""The front of a fleet: fans queries out to the shards, merges, and looks products up."""
