"""Running the exported classifiers with ONNX Runtime."""

from mach.inference.cuda import CudaSettings
from mach.inference.grouping import RunCost, plan_groups
from mach.inference.loaded import LoadedBundle
from mach.inference.repetition_group import RepetitionGroup, load_groups
from mach.inference.session import PROVIDERS, Provider, RepetitionSession, resolve_provider
from mach.inference.stacking import Precision

__all__ = [
    "PROVIDERS",
    "CudaSettings",
    "LoadedBundle",
    "Precision",
    "Provider",
    "RepetitionGroup",
    "RepetitionSession",
    "RunCost",
    "load_groups",
    "plan_groups",
    "resolve_provider",
]
