"""Tokens, scopes and rates, without gRPC."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from mach.errors import Overloaded, PermissionDenied, Unauthenticated
from mach.serving.guard import TokenBucket, TokenGuard, caller_of_call, charge, count_call
from mach.tokens import create_token, revoke_token


class Guarded:
    """A guard with clocks that stand still."""

    def __init__(self, path):
        self.path = path
        self.now = 0.0
        self.registry = CollectorRegistry()
        self.guard = TokenGuard(
            path, self.registry, clock=lambda: self.now, wall_clock=lambda: self.now
        )

    def admit(self, token, scope="search"):
        return self.guard.admit([("x", "y"), ("authorization", f"Bearer {token}")], scope)

    def call(self, token, queries=1):
        """A whole call: let in, charged for its queries, counted at its end."""
        caller_of_call.set(self.admit(token))
        try:
            charge(queries)
        finally:
            count_call()
            caller_of_call.set(None)

    def reload(self):
        assert self.guard.files.check()
        self.guard.reloaded()

    def calls(self, token, outcome):
        labels = {"token": token, "outcome": outcome}
        return self.registry.get_sample_value("mach_auth_calls_total", labels) or 0


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens.json"


def test_a_token_is_let_in_and_nothing_else(path):
    token, other = create_token(path, "a"), create_token(path, "b")
    guarded = Guarded(path)
    guarded.call(token)
    assert guarded.admit(token).token.name == "a"
    assert guarded.guard.admit([("authorization", f"bearer {other}")], None).token.name == "b"
    swapped = token[:14] + other[14:]  # one's id, the other's secret
    for wrong in (swapped, token[:-1], token + "a", "mach_00000000_" + "a" * 43, "", "é"):
        with pytest.raises(Unauthenticated) as caught:
            guarded.admit(wrong)
        assert not wrong or wrong not in str(caught.value)
    for metadata in (
        [],
        [("authorization", token)],
        [("authorization", f"Basic {token}")],
        [("authorization", token.encode())],
        [("authorization-bin", token)],
    ):
        with pytest.raises(Unauthenticated):
            guarded.guard.admit(metadata, "search")
    assert guarded.calls("a", "ok") == 1
    assert guarded.calls("", "unauthenticated") == 11


def test_scopes(path):
    search, admin = create_token(path, "s"), create_token(path, "a", scopes=["admin"])
    guarded = Guarded(path)
    assert guarded.admit(admin, "admin")
    assert guarded.admit(search, None) and guarded.admit(admin, None)
    with pytest.raises(PermissionDenied, match="the token s is for search, not for admin"):
        guarded.admit(search, "admin")
    with pytest.raises(PermissionDenied, match="the token a is for admin, not for search"):
        guarded.admit(admin, "search")
    assert guarded.calls("s", "denied") == 1


def test_a_token_expires(path):
    token = create_token(path, "a", expires=datetime.fromtimestamp(1000, UTC))
    guarded = Guarded(path)
    guarded.now = 999.9
    caller = guarded.admit(token)
    assert guarded.guard.still_valid(caller)
    guarded.now = 1000.0
    assert not guarded.guard.still_valid(caller)
    with pytest.raises(Unauthenticated, match="the token a has expired"):
        guarded.admit(token)


def test_a_revoked_token_is_refused_and_others_keep_what_is_left_of_their_rate(path):
    token, gone = create_token(path, "a", rate=1, burst=3), create_token(path, "b")
    guarded = Guarded(path)
    caller = guarded.admit(gone)
    guarded.admit(token)
    guarded.admit(token)
    revoke_token(path, "b")
    guarded.reload()
    assert not guarded.guard.still_valid(caller)
    with pytest.raises(Unauthenticated):
        guarded.admit(gone)
    guarded.admit(token)
    with pytest.raises(Overloaded):
        guarded.admit(token)


def test_a_rate_is_kept_and_says_when_to_come_back(path):
    token = create_token(path, "a", rate=4, burst=2)
    guarded = Guarded(path)
    guarded.call(token)
    guarded.call(token)
    with pytest.raises(Overloaded, match="the token a allows 4 queries a second") as caught:
        guarded.admit(token)
    assert caught.value.retry_after_ms == 250
    guarded.now = 0.25
    guarded.call(token)
    assert guarded.calls("a", "ok") == 3
    assert guarded.calls("a", "rate_limited") == 1


def test_the_queries_of_a_batch_count(path):
    token = create_token(path, "a", rate=10, burst=10)
    guarded = Guarded(path)
    charge(1000)  # nobody's call
    guarded.call(token, 10)
    with pytest.raises(Overloaded):
        guarded.call(token)


@pytest.mark.parametrize("queries", [10, 11, 12, 256])
def test_no_batch_is_refused_for_ever(path, queries):
    token = create_token(path, "a", rate=10, burst=10)
    guarded = Guarded(path)
    guarded.call(token, queries)  # more than the burst: into debt, from a full bucket
    with pytest.raises(Overloaded) as caught:
        guarded.call(token)
    assert caught.value.retry_after_ms == 100 * (queries - 10 + 1)
    guarded.now += caught.value.retry_after_ms / 1000
    guarded.call(token)
    guarded.now += 1.0
    guarded.call(token, queries)


def test_a_batch_that_is_refused_costs_nothing_and_is_counted_once(path):
    token = create_token(path, "a", rate=10, burst=10)
    guarded = Guarded(path)
    guarded.call(token)
    for _ in range(5):
        with pytest.raises(Overloaded) as caught:
            guarded.call(token, 12)
        assert caught.value.retry_after_ms == 100  # and not more each time
    assert (guarded.calls("a", "ok"), guarded.calls("a", "rate_limited")) == (1, 5)
    guarded.now = 0.1
    guarded.call(token, 12)
    assert (guarded.calls("a", "ok"), guarded.calls("a", "rate_limited")) == (2, 5)


@given(
    rate=st.floats(0.5, 1000),
    burst=st.integers(1, 100),
    steps=st.lists(st.tuples(st.integers(1, 300), st.floats(0, 2)), min_size=1, max_size=60),
)
def test_a_bucket_lets_through_no_more_than_rate_and_burst_and_one_batch(rate, burst, steps):
    bucket, now, paid, last = TokenBucket(rate, burst, 0.0), 0.0, 0, 0
    for cost, pause in steps:
        now += pause
        wait = bucket.take(cost, now)
        if wait == 0:
            paid += cost
            last = max(last, cost)
        else:
            assert bucket.take(cost, now + wait * 0.99 - 1e-9) > 0
            now += wait * (1 + 1e-9) + 1e-9
            assert bucket.take(cost, now) == 0  # as it said
            paid += cost
            last = max(last, cost)
        assert paid <= burst + rate * now + last + 1e-3
