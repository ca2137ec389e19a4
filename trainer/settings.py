"""Settings of a training run."""

from __future__ import annotations

import hashlib
import json
import math
import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mach.errors import InvalidInput
from mach.features import FeatureSettings

__all__ = ["MAX_WEIGHT", "MIN_WEIGHT", "TrainSettings", "default_batch", "default_buckets"]

#: Weights that are not 0 lie between: so no sum over a log leaves the range of float32, and no
#: share that a row's products get of it vanishes.
MIN_WEIGHT, MAX_WEIGHT = 1e-30, 1e18

#: Fields that decide what the prepared data are.
_DATA_FIELDS = (
    "word_ngrams", "char_ngrams_min", "char_ngrams_max", "affix_lengths",
    "transliterate", "hash_bits", "min_count", "max_features", "min_subword_count", "max_subwords",
    "catalog_titles", "title_weight", "weight_power", "validation_fraction", "validation_max",
    "max_skipped", "max_unknown", "seed",
)  # fmt: skip
#: Fields that change no repetition's model: how many there are, and who trains them.
_RUN_FIELDS = (
    "repetitions", "workers", "executor", "group", "checkpoint_seconds", "merge_exponents",
)  # fmt: skip


_LEAST_EXPONENT = 0.001  # as of mach.merge.MergeRule, whose module takes long to import


class TrainSettings(BaseModel):
    """How to train. Every field is an option of ``mach train`` and ``python -m trainer``."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    repetitions: int = Field(8, ge=1, le=1000)
    """R, independent classifiers; recall rises with R, as do size and cost."""
    buckets: int | None = Field(None, ge=2, le=1_000_000)
    """B, buckets a repetition; by default 10 x the square root of the number of products."""
    hidden: int = Field(256, ge=1, le=16_384)
    """H, width of the hidden layer."""
    epochs: int = Field(5, ge=1, le=1000)
    """Passes over the training part, at most; see patience."""
    batch_size: int | None = Field(None, ge=1, le=65_536)
    """Queries a step; by default 1/120 of them all, from 32 to 1024, so that a small log gets
    steps enough."""
    learning_rate: float = Field(5e-3, gt=0, le=10)
    """Adam's step size after warm-up."""
    embedding_rate: float = Field(10.0, gt=0, le=1000)
    """Step size of the embedding, as a multiple of learning_rate."""
    gradient_threshold: float = Field(0.02, ge=0, le=1)
    """On a CPU, sample the part of the logits' gradient below this; 0 computes all of it."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the step size falls towards 0 over the epochs."""
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of all steps in which the step size rises from 0."""
    patience: int = Field(0, ge=0)
    """Stop after so many epochs without a better held-out loss and keep the best; 0 keeps the
    last. The loss rises before accuracy falls, so a schedule of few epochs needs no stopping."""
    feature_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a query's features left out at random in each step."""
    hidden_dropout: float = Field(0.15, ge=0, lt=1)
    """Share of hidden units left out at random in each step."""
    loss: Literal["one-vs-all", "softmax"] = "one-vs-all"
    """What is minimised: a yes or no for each bucket, or one choice among all of them."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of the target spread evenly over all buckets; for the softmax loss only."""

    word_ngrams: int = Field(2, ge=0, le=5)
    """Longest run of words used as one feature; 0 uses no words."""
    char_ngrams_min: int = Field(5, ge=0, le=10)
    """Shortest character n-gram used as a feature; 0 uses none."""
    char_ngrams_max: int = Field(5, ge=0, le=10)
    """Longest character n-gram."""
    affix_lengths: tuple[int, ...] = ()
    """Beginnings and ends of longer words used as features, by their lengths; "" uses none."""
    transliterate: bool = False
    """Write letters of all scripts as ASCII first: é as e, Москва as moskva. Helps where names
    are spelt in several ways; Chinese words that sound alike become one."""
    hash_bits: int = Field(25, ge=8, le=28)
    """log2 of the number of slots that n-grams are hashed into."""
    min_count: int = Field(3, ge=1)
    """Keep n-grams of words that occur in at least so many different queries."""
    max_features: int = Field(70_000, ge=1, le=2**28)
    """Keep at most so many of them, the most frequent ones: a model's size and its training
    grow with them, its accuracy slowly; raise it for a large log."""
    min_subword_count: int = Field(5, ge=1)
    """Keep parts of words that occur in at least so many different queries."""
    max_subwords: int = Field(55_000, ge=1, le=2**28)
    """Keep at most so many of them, the most frequent ones."""
    catalog_titles: bool = True
    """Use each product's title, if the catalog has any, as one more training query."""
    title_weight: float = Field(1.0, ge=MIN_WEIGHT, le=MAX_WEIGHT)
    """Weight of such a query."""
    weight_power: float = Field(0.5, ge=0, le=1)
    """A query of total weight w counts as w to this power: 1 as often as asked, 0 once."""
    validation_fraction: float = Field(0.03, ge=0, lt=1)
    """Share of the queries held out, to stop early and to choose the merge rule."""
    validation_max: int = Field(4000, ge=1)
    """Hold out at most so many queries."""
    max_skipped: float = Field(0.05, ge=0, le=1)
    """Give up where a larger share of rows has no query, no product or weight 0."""
    max_unknown: float = Field(0.5, ge=0, le=1)
    """Give up where a larger share of pairs names products that are not in the catalog."""

    quantization: Literal["none", "fp16", "int8", "int4"] = "int4"
    """Storage of weights in the exported models; int4 is 4 bits for the embedding, 8 for the
    rest."""
    merge_exponents: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    """Exponents of the merge rule to choose from; 0 is the sum of log-probabilities, 1 the mean."""
    seed: int = Field(0, ge=0, lt=2**63)
    """The same seed, data, settings and machine give the same bundle version."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto takes a CUDA device if there is one."""
    engine: Literal["auto", "single", "batched"] = "auto"
    """How to train: repetitions one by one, each in its own order of the examples, or several as
    one batched model, in one order; auto is single on a CPU and batched on CUDA."""
    group: int | None = Field(None, ge=1, le=1000)
    """Repetitions in one batched model; by default as many as fit the free memory of a CUDA
    device, and 1 on a CPU. Changes no model but for rounding."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Factors of the matrix products; weights, loss and sums are float32. auto is float32 on a
    CPU and bf16 on CUDA."""
    executor: Literal["local", "ray"] = "local"
    """Who trains the repetitions: processes of this machine, or the tasks of a Ray cluster."""
    threads: int = Field(1, ge=1, le=1024)
    """CPU threads of each repetition in training."""
    workers: int | None = Field(None, ge=1, le=1024)
    """Processes, or Ray tasks, that train at once; by default as many as there are CPUs for, one
    on CUDA, and as many as the Ray cluster runs."""
    checkpoint_seconds: float = Field(60.0, ge=0)
    """Write a checkpoint at the end of an epoch if the last is older than this."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainSettings:
        self.features  # noqa: B018 - FeatureSettings checks its own combinations
        if not self.merge_exponents or not all(
            t == 0 or _LEAST_EXPONENT <= t <= 1 for t in self.merge_exponents
        ):
            raise ValueError(
                f"merge_exponents needs one number or more, each 0 or from {_LEAST_EXPONENT} to 1"
            )
        if 0 < self.gradient_threshold < 1e-30:  # sums are divided by it
            raise ValueError("gradient_threshold must be 0, or 1e-30 or more")
        if self.label_smoothing and self.loss != "softmax":
            raise ValueError("label_smoothing is only for the loss softmax")
        if self.quantization == "int4" and self.hidden % 2:
            raise ValueError("quantization int4 needs an even number of hidden units")
        return self

    @classmethod
    def create(cls, **values: Any) -> TrainSettings:
        """Settings from keyword arguments.

        Raises:
            InvalidInput: naming the first field that is wrong.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "settings"
            raise InvalidInput(field, first["msg"].removeprefix("Value error, ")) from None

    @property
    def features(self) -> FeatureSettings:
        """How text becomes slots."""
        return FeatureSettings(
            word_ngrams=self.word_ngrams,
            char_ngrams_min=self.char_ngrams_min,
            char_ngrams_max=self.char_ngrams_max,
            affix_lengths=self.affix_lengths,
            transliterate=self.transliterate,
            hash_bits=self.hash_bits,
        )

    def data_fingerprint(self, inputs: Any) -> str:
        """Identifies the data prepared from ``inputs`` (JSON-ready) under these settings."""
        return _digest([inputs, self.model_dump(include=set(_DATA_FIELDS), mode="json")])

    def model_fingerprint(self, data_fingerprint: str) -> str:
        """Identifies what a repetition trained on those data comes out as."""
        return _digest([data_fingerprint, self.model_dump(exclude=set(_RUN_FIELDS), mode="json")])

    def num_workers(self, device: str) -> int:
        """How many local processes train at once on a device, ``cpu`` or ``cuda``."""
        if self.workers is not None:
            return self.workers
        cpus = len(os.sched_getaffinity(0))
        return 1 if device == "cuda" else max(1, cpus // self.threads)

    def batches(self, device: str) -> bool:
        """Whether repetitions are trained as one batched model there."""
        return self.engine == "batched" or (self.engine == "auto" and device == "cuda")

    def rounds(self, device: str) -> bool:
        """Whether matrix products take bf16 factors there."""
        return self.precision == "bf16" or (self.precision == "auto" and device == "cuda")


def default_buckets(num_classes: int) -> int:
    """B where none is given: 10 sqrt(K), from 256 (or K) to 20,000.

    That is 1,900 for 35,000 products and 10,000 for a million; 20,000 is what Medini et al.
    (2019) use for 49 million.
    """
    return max(2, min(num_classes, 256), min(20_000, round(10 * math.sqrt(num_classes))))


def default_batch(num_queries: int) -> int:
    """Queries a step where that is not given."""
    return max(32, min(1024, num_queries // 120))


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]
