"""Mistakes: what is done to the objects of a value set, and the check that must notice."""

from tests.k8s.mutations import (
    fleet,
    programs,
    references,
    scaling,
    secrets,
    security,
    tracing,
)

MUTATIONS = {
    **references.MUTATIONS,
    **fleet.MUTATIONS,
    **programs.MUTATIONS,
    **scaling.MUTATIONS,
    **secrets.MUTATIONS,
    **security.MUTATIONS,
    **tracing.MUTATIONS,
}
