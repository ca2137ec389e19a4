"""Accuracy and cost of a bundle on interactions that it was not trained on."""

from mach.evaluation.evaluate import Evaluation, evaluate
from mach.evaluation.metrics import RankingMetrics, propensities
from mach.evaluation.pipeline import LocalPipeline

__all__ = ["Evaluation", "LocalPipeline", "RankingMetrics", "evaluate", "propensities"]
