"""From queries that wait to answers of the shards: batching, routing, patience."""

from aggregator.fanout.batch import Batch, Job, JobAnswer
from aggregator.fanout.fanout import FanOut
from aggregator.fanout.fleet import Fleet
from aggregator.fanout.targets import Target

__all__ = ["Batch", "FanOut", "Fleet", "Job", "JobAnswer", "Target"]
