"""Query text to sparse features, the same code in training and in serving.

Text is normalised and cut into n-grams (:mod:`mach.features.ngrams`), each n-gram is
hashed into one of ``2**hash_bits`` slots, and the slots worth keeping, counted on the
training log, become the model's features (:class:`Featurizer`). Batches travel as
compressed sparse rows (:class:`SparseBatch`).
"""

from mach.features.featurizer import Featurizer, SlotCounter
from mach.features.ngrams import FeatureSettings, slots_of
from mach.features.sparse import SparseBatch

__all__ = ["FeatureSettings", "Featurizer", "SlotCounter", "SparseBatch", "slots_of"]
