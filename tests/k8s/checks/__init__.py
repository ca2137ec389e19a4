"""What schemas cannot see: whether the objects of a release fit each other and the programs."""

from tests.k8s.checks import (
    fleet,
    programs,
    references,
    scaling,
    secrets,
    security,
    tracing,
)
from tests.k8s.checks.model import CHECKS, Release, name_of

__all__ = [
    "CHECKS",
    "Release",
    "fleet",
    "name_of",
    "programs",
    "references",
    "scaling",
    "secrets",
    "security",
    "tracing",
]
