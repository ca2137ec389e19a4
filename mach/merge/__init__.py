"""From R vectors of bucket scores to the k best of K products, exactly."""

from mach.merge.engine import TopK
from mach.merge.products import ProductSet
from mach.merge.result import TopKResult, WorkBudget
from mach.merge.rule import MergeRule
from mach.merge.table import BucketTable

__all__ = ["BucketTable", "MergeRule", "ProductSet", "TopK", "TopKResult", "WorkBudget"]
