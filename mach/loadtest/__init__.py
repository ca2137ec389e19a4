"""Load on a fleet, measured from outside: what ``mach bench fleet`` runs."""

from mach.loadtest.cpu import CpuMeter, MetricsCpu, Usage, spent
from mach.loadtest.generator import LoadPlan, run_load
from mach.loadtest.report import UNSENT, LoadReport, Outcomes

__all__ = [
    "UNSENT",
    "CpuMeter",
    "LoadPlan",
    "LoadReport",
    "MetricsCpu",
    "Outcomes",
    "Usage",
    "run_load",
    "spent",
]
