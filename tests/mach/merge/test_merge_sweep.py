"""The proof by tallies where the sample misleads: it may take longer, and stays exact."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from mach.merge import BucketTable, TopK, _workspace
from mach.merge._lists import collect, plan_lists, step_at
from mach.merge._query import HEAP_SIZE
from mach.merge._runs import _first_from
from mach.merge._sweep import cost_of, cost_to_sweep, sweep
from mach.merge._tally import is_full
from mach.merge.reference import reference_top_k

CLASSES, BUCKETS, REPETITIONS, K, WINDOW = 3000, 300, 12, 20, 512
DRIFTS = {
    "early": lambda place: 1.0 - place,
    "late": lambda place: place,
    "middle": lambda place: 1.0 - abs(2.0 * place - 1.0),
    "ends": lambda place: abs(2.0 * place - 1.0),
    "even": lambda place: 0.5,
    "first": lambda place: 2.0 * (place < 0.2),
}


def drawn(drift, rng):
    """Buckets and scores of products that are better or worse by where they are in the catalog."""
    place = np.arange(CLASSES) / CLASSES
    quality = DRIFTS[drift](place) * rng.uniform(0.5, 3.0) + rng.normal(size=CLASSES)
    ranked = np.argsort(np.argsort(quality + rng.normal(size=(REPETITIONS, CLASSES)), axis=1))
    assignment = ranked * BUCKETS // CLASSES
    scores = np.linspace(-8.0, -1.0, BUCKETS) + rng.normal(scale=0.2, size=(REPETITIONS, BUCKETS))
    return assignment, scores.astype(np.float32)


@pytest.mark.parametrize("drift", DRIFTS)
def test_any_order_of_the_catalog(drift):
    rng = np.random.default_rng(1)
    for _ in range(30):
        assignment, scores = drawn(drift, rng)
        table = BucketTable.from_assignment(assignment, BUCKETS)
        with (
            mock.patch.object(_workspace, "_TALLIED", WINDOW),
            mock.patch.multiple(
                "mach.merge._search",
                _WALK_FIXED=-1.0, _WALK_BUCKET=0.0, _WALK_SHARE=1e18, _WALK_MOST=1e18,
                _SORTED_SHARE=1.0,
            ),
        ):  # fmt: skip
            found = TopK(table, warm=False).search(scores, K)
        classes, expected = reference_top_k(scores, assignment, K)
        np.testing.assert_array_equal(found.classes, classes)
        np.testing.assert_array_equal(found.scores, expected)
        assert found.proven


def test_only_what_a_target_was_too_high_for_is_swept_again():
    rng = np.random.default_rng(2)
    ends = []
    for _ in range(150):
        assignment, scores = drawn("first", rng)
        engine = TopK(BucketTable.from_assignment(assignment, BUCKETS), warm=False)
        plan = engine._plan(None)
        classes, expected = reference_top_k(scores, assignment, K)
        with mock.patch.object(_workspace, "_TALLIED", WINDOW), engine._workspace(plan) as room:
            search = engine._new_search(plan, scores, K, room, None, None)
            query = room.query(
                scores, np.empty(0, np.uint8), search.heap_scores, search.heap_classes
            )
            query.state[:], query.counts[:], query.cutoffs[:] = 0, 0, np.inf
            collect(query.scores, 1.0, query.keys, query.values, query.counts, query.cutoffs)
            members = float(REPETITIONS * CLASSES)
            steps = plan_lists(query, room.schedule, plan.sizes, CLASSES / BUCKETS, members)
            # The sample, the last products, is scouted; with the first it says too much of others.
            sampled = 3 * WINDOW
            best, best_scores = reference_top_k(scores, assignment[:, sampled:], K)
            query.heap_scores[:], query.heap_classes[:] = best_scores[::-1], best[::-1] + sampled
            query.state[HEAP_SIZE] = K
            begin, sample_from, target = 0, sampled, expected[-1] - rng.uniform(0.0, 6.0)
            aim = cost_to_sweep(cost_of(room.schedule, steps, target), members)
            if not room.schedule.bounds[step_at(room.schedule, steps, -np.inf, aim)] > -np.inf:
                continue  # it would take all of some repetition's buckets
            for _ in range(3):
                begin = sweep(
                    query, plan.compiled, CLASSES, room.schedule, steps, room.tally(K), WINDOW,
                    begin, sample_from, target,
                )  # fmt: skip
                ends.append(begin)
                if begin == CLASSES:
                    break
                reached = query.heap_scores[0] if is_full(query) else expected[-1]
                sample_from, target = CLASSES, reached - query.tolerances[0]
            assert begin == CLASSES
            order = np.lexsort((query.heap_classes, -query.heap_scores))
            np.testing.assert_array_equal(query.heap_classes[order], classes)
            np.testing.assert_array_equal(query.heap_scores[order], expected)
    assert len(ends) > 10
    assert any(0 < end < CLASSES for end in ends)


def test_where_a_run_begins_is_found_from_any_guess():
    rng = np.random.default_rng(3)
    for size in (0, 1, 2, 3, 7, 30):
        members = np.sort(rng.choice(100, size + 2, replace=False)).astype(np.uint32)
        low, end = 1, size + 1  # others' members lie before and after
        for class_from in range(1, 101):
            expected = low + np.searchsorted(members[low:end], class_from)
            for guess in range(low, end + 1):
                assert _first_from(members, low, end, guess, class_from) == expected
