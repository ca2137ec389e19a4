"""Running the exported classifiers with ONNX Runtime."""

from mach.inference.grouping import RunCost, plan_groups
from mach.inference.loaded import LoadedBundle
from mach.inference.session import PROVIDERS, Provider, RepetitionSession, resolve_provider

__all__ = [
    "PROVIDERS",
    "LoadedBundle",
    "Provider",
    "RepetitionSession",
    "RunCost",
    "plan_groups",
    "resolve_provider",
]
