"""The example backend in front of a live fleet."""

import json
import runpy
import threading
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest

from mach.client import MachClient
from mach.fleet import LocalFleet

BACKEND = Path(__file__).resolve().parents[2] / "examples" / "storefront" / "backend.py"


def test_it_answers_and_names_mistakes(tiny_bundle):
    backend = runpy.run_path(str(BACKEND))
    with (
        LocalFleet(tiny_bundle, num_shards=1) as fleet,
        MachClient(fleet.address, timeout=5) as client,
        backend["make_server"](client, "127.0.0.1", 0) as server,
    ):
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/search?q=red+drill&k=2"
            with urllib.request.urlopen(url) as answer:
                assert len(json.load(answer)["products"]) == 2
                assert answer.headers["Cache-Control"] == "max-age=60"
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"{url}&filter=price+%3C")
            with caught.value as refused:
                assert refused.code == 400
                assert "filter" in json.load(refused)["error"]
        finally:
            server.shutdown()
            thread.join()


def test_attributes_take_no_products_place():
    backend = runpy.run_path(str(BACKEND))
    product = SimpleNamespace(
        product_id="p1", score=-1.0, attributes={"id": "another", "score": 5, "title": "Drill"}
    )
    coverage = SimpleNamespace(answered=1, total=1)
    fleet = SimpleNamespace(
        search=lambda *args, **kwargs: SimpleNamespace(products=[product], coverage=coverage)
    )
    with backend["make_server"](fleet, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/search?q=x") as got:
                assert json.load(got)["products"] == [{"id": "p1", "score": -1.0, "title": "Drill"}]
        finally:
            server.shutdown()
            thread.join()
