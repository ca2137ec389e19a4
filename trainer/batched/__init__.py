"""Several repetitions trained at once on one device, as one batched model.

They see the same examples in the same order, so a batch is read, featurized and sent to the
device once for all of them. Nothing else is shared: repetition r is defined by the seed and r,
and comes out the same, but for rounding, alone or in any group.
"""

from trainer.batched.memory import groups_of
from trainer.batched.run import train_group

__all__ = ["groups_of", "train_group"]
