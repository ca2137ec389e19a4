"""Errors, the statuses they become, and the way back."""

import grpc
import pytest

from mach import errors
from mach.errors import from_status, status_of


def test_every_public_error_is_in_the_tree_of_the_docstring():
    for name in errors.__all__:
        if isinstance(getattr(errors, name), type):
            assert f" {name} " in errors.__doc__ or f"{name} " in errors.__doc__


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidInput("options.k", "must be from 1 to 1000, got 0"),
        errors.VersionNotFound("version x is not served"),
        errors.VersionMismatch("shards hold y"),
        errors.Unavailable("2 of 8 repetitions answered"),
        errors.Overloaded("the queue is full"),
        errors.DeadlineExceeded("time is up"),
        errors.Unauthenticated("no token"),
        errors.PermissionDenied("the token is not for admin"),
    ],
)
def test_a_client_raises_what_the_server_raised(error):
    again = from_status(status_of(error), str(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


def test_what_is_not_ours_is_internal():
    assert status_of(ValueError("x")) is grpc.StatusCode.INTERNAL
    assert type(from_status(grpc.StatusCode.DATA_LOSS, "")) is errors.MachError


def test_data_errors_name_file_and_row():
    assert (
        str(errors.DataError("log.csv", "no product_id", row=7)) == "log.csv, row 7: no product_id"
    )
