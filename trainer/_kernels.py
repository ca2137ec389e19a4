"""Compiled parts of a training step on a CPU; see :mod:`trainer.sampled`."""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["adam", "backward", "bag", "relu_dropout", "sample_gradient", "seed", "update_rows"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@njit(cache=True)
def seed(value: int) -> None:
    """Seed the generator of this module's compiled code, which is not NumPy's."""
    np.random.seed(value)


@njit(cache=True, fastmath=True)
def bag(
    indices: Ints, values: Floats, splits: Ints, embedding: Floats, bias: Floats, out: Floats
) -> None:
    """``out[i] = bias + sum of value * embedding[index]`` over the entries of row i."""
    hidden = embedding.shape[1]
    for row in range(len(splits) - 1):
        total = out[row]
        for j in range(hidden):
            total[j] = bias[j]
        for entry in range(splits[row], splits[row + 1]):
            source = embedding[indices[entry]]
            value = values[entry]
            for j in range(hidden):
                total[j] += value * source[j]


@njit(cache=True, fastmath=True)
def relu_dropout(units: Floats, slope: Floats, dropout: float) -> None:
    """ReLU and inverted dropout in place; ``slope`` becomes the derivative."""
    scale = np.float32(1.0 / (1.0 - dropout))
    for row in range(units.shape[0]):
        for j in range(units.shape[1]):
            if units[row, j] > 0 and (dropout == 0 or np.random.random() >= dropout):
                units[row, j] *= scale
                slope[row, j] = scale
            else:
                units[row, j] = 0
                slope[row, j] = 0


@njit(cache=True, fastmath=True)
def sample_gradient(
    probabilities: Floats,
    buckets: NDArray[np.int64],
    shares: Floats,
    splits: NDArray[np.int64],
    weights: Floats,
    threshold: float,
    one_vs_all: bool,
    columns: Ints,
    entries: Floats,
    starts: NDArray[np.int64],
) -> float:
    """A sparse, unbiased estimate of the logits' gradient; returns the summed loss.

    ``probabilities`` are softmaxes, or sigmoids where ``one_vs_all``; either way a row's gradient
    is ``probability - share``. Of it, the wanted buckets and all of probability
    ``threshold`` or more are exact; among the others, those at which the running sum of
    probabilities passes the next multiple of ``threshold`` (from a random start) stand for the
    rest with that much each: systematic sampling, so each is kept with probability p/threshold
    at value threshold. Row i's entries are ``starts[i]:starts[i + 1]`` of ``columns`` and
    ``entries``, of which there are at most ``len(buckets) + len(weights)`` and
    ``2 * probabilities.sum() / threshold``. ``probabilities`` is spoilt. Of the one-vs-all loss,
    ``-log(1 - p)`` is taken as p where that is below ``threshold``.
    """
    count = 0
    loss = 0.0
    for row in range(len(weights)):
        p = probabilities[row]
        weight = weights[row]
        starts[row] = count
        for at in range(splits[row], splits[row + 1]):
            share, value = shares[at], p[buckets[at]]
            loss -= weight * share * math.log(max(value, 1e-30))
            if one_vs_all:
                loss -= weight * (1 - share) * math.log(max(1 - value, 1e-30))
        for at in range(splits[row], splits[row + 1]):
            bucket = buckets[at]
            columns[count] = bucket
            entries[count] = weight * (p[bucket] - shares[at])
            p[bucket] = 0  # a bucket wanted twice pays its probability once
            count += 1
        running = np.random.random() * threshold
        for bucket in range(len(p)):
            value = p[bucket]
            if value >= threshold:
                columns[count] = bucket
                entries[count] = weight * value
                count += 1
                if one_vs_all:
                    loss -= weight * math.log(max(1 - value, 1e-30))
            else:
                running += value
                if one_vs_all:
                    loss += weight * value
                if running >= threshold:
                    running -= threshold
                    columns[count] = bucket
                    entries[count] = weight * threshold
                    count += 1
    starts[len(weights)] = count
    return loss


@njit(cache=True, fastmath=True)
def backward(
    columns: Ints,
    entries: Floats,
    starts: NDArray[np.int64],
    output: Floats,
    units: Floats,
    slope: Floats,
    output_gradient: Floats,
    bias_gradient: Floats,
    unit_gradient: Floats,
) -> None:
    """From the logits' gradient to those of the output layer (added) and the hidden units."""
    scale = np.float32(1.0 / (len(starts) - 1))
    hidden = units.shape[1]
    for row in range(len(starts) - 1):
        wanted = unit_gradient[row]
        active = units[row]
        for j in range(hidden):
            wanted[j] = 0
        for at in range(starts[row], starts[row + 1]):
            g = entries[at] * scale
            source = output[columns[at]]
            target = output_gradient[columns[at]]
            for j in range(hidden):
                wanted[j] += g * source[j]
            for j in range(hidden):
                target[j] += g * active[j]
            bias_gradient[columns[at]] += g
        for j in range(hidden):
            wanted[j] *= slope[row, j]


@njit(cache=True, fastmath=True)
def adam(
    parameter: Floats,
    gradient: Floats,
    first: Floats,
    second: Floats,
    rate: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
) -> None:
    """Adam (Kingma and Ba, ICLR 2015) in one pass over flat arrays; zeroes ``gradient``."""
    b1, b2 = np.float32(beta1), np.float32(beta2)
    o1, o2 = np.float32(1 - beta1), np.float32(1 - beta2)
    size = np.float32(rate / (1 - beta1**step))
    correction = np.float32(1 / (1 - beta2**step))
    eps = np.float32(epsilon)
    for i in range(parameter.size):
        g = gradient[i]
        m = b1 * first[i] + o1 * g
        v = b2 * second[i] + o2 * g * g
        first[i] = m
        second[i] = v
        parameter[i] -= size * m / (np.sqrt(v * correction) + eps)
        gradient[i] = 0


@njit(cache=True, fastmath=True)
def update_rows(
    indices: Ints,
    values: Floats,
    splits: Ints,
    unit_gradient: Floats,
    embedding: Floats,
    mean_square: Floats,
    head: Ints,
    following: Ints,
    row_of: Ints,
    touched: Ints,
    rate: float,
    beta2: float,
    epsilon: float,
    step: int,
) -> None:
    """Row-wise RMS: each embedding row in use moves by its gradient over its root mean square.

    A row keeps one running mean of its gradient's mean square. The entries of a feature are
    chained (``head``, all -1 between calls, and ``following``), so that each row is read and
    written once a step, however often the batch uses it.
    """
    hidden = embedding.shape[1]
    used = 0
    for row in range(len(splits) - 1):
        for entry in range(splits[row], splits[row + 1]):
            row_of[entry] = row
            feature = indices[entry]
            if head[feature] < 0:
                touched[used] = feature
                used += 1
            following[entry] = head[feature]
            head[feature] = entry
    correction = np.float32(1 / (1 - beta2**step))
    b2, o2 = np.float32(beta2), np.float32(1 - beta2)
    size, eps = np.float32(rate), np.float32(epsilon)
    gradient = np.empty(hidden, np.float32)
    for k in range(used):
        feature = touched[k]
        entry = head[feature]
        head[feature] = -1
        for j in range(hidden):
            gradient[j] = 0
        while entry >= 0:
            source = unit_gradient[row_of[entry]]
            value = values[entry]
            for j in range(hidden):
                gradient[j] += value * source[j]
            entry = following[entry]
        square = np.float32(0)
        for j in range(hidden):
            square += gradient[j] * gradient[j]
        square /= hidden
        mean_square[feature] = b2 * mean_square[feature] + o2 * square
        factor = size / (np.sqrt(mean_square[feature] * correction) + eps)
        target = embedding[feature]
        for j in range(hidden):
            target[j] -= factor * gradient[j]
