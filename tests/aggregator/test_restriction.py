"""Sets of products that requests ask for: what is in them, and what is kept."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest

from aggregator import restriction
from aggregator.requests import SearchOptions
from aggregator.restriction import Restrictions
from mach.bundle import Catalog
from mach.errors import InvalidInput
from tests.aggregator.fakes import fake_fleet
from tests.bundles import make_catalog

K = 300


@pytest.fixture
def catalog():
    return Catalog(make_catalog(K))


def ids(*classes):
    return tuple(f"P{i:05d}" for i in classes)


@pytest.mark.parametrize("of_catalog", [1, 1_000_000], ids=["by search", "by a pass"])
@pytest.mark.parametrize("text", ["", "in_stock"])
@pytest.mark.parametrize("allowed", [(), ids(*range(10)), ids(*range(200)), ("nothing",)])
@pytest.mark.parametrize("blocked", [(), ids(3, 5), ids(*range(100)), ("nothing",)])
def test_a_set_is_what_was_asked_for(catalog, monkeypatch, of_catalog, text, allowed, blocked):
    monkeypatch.setattr(restriction, "_PASS", of_catalog)
    options = SearchOptions(filter=text, allowed_product_ids=allowed, blocked_product_ids=blocked)
    expected = [
        i
        for i in range(K)
        if (not allowed or ids(i)[0] in allowed)
        and ids(i)[0] not in blocked
        and (not text or i % 4 != 3)
    ]
    made = Restrictions(catalog).product_set(options)
    assert np.flatnonzero(made.as_mask()).tolist() == expected
    assert made.size == len(expected)


def test_what_was_used_last_is_kept_within_bounds(catalog, monkeypatch):
    restrictions = Restrictions(catalog)
    options = SearchOptions(filter="in_stock", blocked_product_ids=ids(1))
    made = restrictions.product_set(options)
    assert restrictions.product_set(options) is made
    size = restrictions.product_set(replace(options, blocked_product_ids=())).nbytes
    assert size == -(-K // 8)
    monkeypatch.setattr(restriction, "_CACHED_BYTES", 3 * size)
    for number in range(20):
        restrictions.product_set(replace(options, blocked_product_ids=ids(number)))
    assert sum(kept.nbytes for kept in restrictions._kept.values()) <= 3 * size
    assert restrictions.product_set(options) is not made


def test_a_mistake_names_the_field(catalog):
    with pytest.raises(InvalidInput, match=r"^options\.filter: at character 1: there is no"):
        Restrictions(catalog).product_set(SearchOptions(filter="size = 1"))


async def test_others_do_not_wait_for_a_long_filter(served, one_each, titles, monkeypatch):
    go_on = threading.Event()
    made = served.restrictions.product_set
    served.restrictions._kept.clear()

    def slowly(options):
        assert go_on.wait(60)
        return made(options)

    monkeypatch.setattr(served.restrictions, "product_set", slowly)
    async with fake_fleet(served, one_each) as fleet:

        def search(text):
            return fleet.search([titles[9]], SearchOptions(k=3, filter=text), 5.0, single=True)

        waiting = asyncio.create_task(search("in_stock"))
        await asyncio.sleep(0.05)
        assert (await search("")).results[0].product_ids
        assert not waiting.done()
        go_on.set()
        found = (await waiting).results[0].product_ids
        go_on.clear()  # what is kept is not made again
        assert (await search("in_stock")).results[0].product_ids == found
