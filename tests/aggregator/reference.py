"""What a search must find, in a few lines of NumPy."""

import numpy as np


def reference_top_k(bundle, log_probabilities, k, repetitions=None, allowed=None):
    """Product ids and scores from log-probabilities of shape (r, B)."""
    repetitions = list(range(len(log_probabilities))) if repetitions is None else repetitions
    classes = np.arange(bundle.manifest.num_classes)
    sums = np.zeros(len(classes))
    for row, repetition in zip(log_probabilities, repetitions, strict=True):
        t = bundle.merge_rule.exponent
        f = row if t == 0 else np.exp(t * row.astype(np.float64))
        sums += f[bundle.hash.buckets(repetition, classes)]
    if allowed is not None:
        classes = classes[np.isin(classes, allowed)]
    best = sorted(classes, key=lambda i: (-sums[i], i))[:k]
    ids = bundle.catalog.table["product_id"].to_pylist()
    r = len(repetitions)
    t = bundle.merge_rule.exponent
    final = [sums[i] / r if t == 0 else np.log(sums[i] / r) / t for i in best]
    return [ids[i] for i in best], final
