"""What Helm refuses when it sees a cluster. ``lookup`` asks an API server, of which a few answers
are played here; ``render`` asks none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import helm_python
import pytest
import yaml

from tests.k8s.rendering import CHART, rendered, values_of

_DEPLOYMENTS = "/apis/apps/v1/namespaces/prod/deployments/"
_APPS = {"groupVersion": "apps/v1", "version": "v1"}
_ANSWERS = {
    "/version": {"major": "1", "minor": "35", "gitVersion": "v1.35.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis": {
        "kind": "APIGroupList",
        "groups": [{"name": "apps", "versions": [_APPS], "preferredVersion": _APPS}],
    },
    "/apis/apps/v1": {
        "kind": "APIResourceList",
        "groupVersion": "apps/v1",
        "resources": [
            {"name": "deployments", "kind": "Deployment", "namespaced": True, "verbs": ["get"]}
        ],
    },
}
_LACKING = {"kind": "Status", "apiVersion": "v1", "reason": "NotFound", "code": 404}


class Cluster:
    """An API server that knows Deployments and nothing else, and what it was asked."""

    def __init__(self) -> None:
        self.answers = dict(_ANSWERS)
        self.asked: list[tuple[str, str]] = []
        cluster = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                cluster.asked.append((self.command, path))
                body = json.dumps(cluster.answers.get(path, _LACKING)).encode()
                self.send_response(200 if path in cluster.answers else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the base class's names

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def runs(self, name: str) -> None:
        """Let the Deployments of a value set run."""
        for item in rendered(name):
            if item["kind"] == "Deployment":
                self.answers[_DEPLOYMENTS + item["metadata"]["name"]] = item

    def error_of(self, values: dict[str, object]) -> str:
        """What Helm says of these values. There is always something: this server cannot go on."""
        address = f"http://127.0.0.1:{self.server.server_port}"
        access = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": address}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": ""}}],
            "current-context": "c",
        }
        with (
            helm_python.Config(
                kubeconfig_content=yaml.safe_dump(access), namespace="prod", storage_driver="memory"
            ) as config,
            pytest.raises(helm_python.HelmError) as caught,
        ):
            config.install(CHART, "demo", values, namespace="prod", dry_run="server")
        return str(caught.value)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    thread = threading.Thread(target=cluster.server.serve_forever, args=(0.05,))
    thread.start()
    yield cluster
    cluster.server.shutdown()
    thread.join()
    cluster.server.server_close()


@pytest.mark.parametrize(
    ("change", "label", "old", "new"),
    [
        (
            {"bundles": {"blue": {"version": "b" * 64, "repetitions": 4}}},
            "version", "a" * 12, "b" * 12,
        ),
        ({"shard": {"repetitionsPerShard": 2}}, "repetitions", "0", "0-1"),
    ],
)  # fmt: skip
def test_a_running_fleet_keeps_its_bundle(cluster, change, label, old, new):
    """Refused before anything is sent: Services would get their new selectors first."""
    cluster.runs("small")
    error = cluster.error_of(values_of("small") | change)
    assert (
        f"bundles.blue: Deployment demo-blue-shard-000 runs with mach-fleet/{label} {old}, "
        f'which cannot become "{new}"' in error
    )
    assert {method for method, _ in cluster.asked} == {"GET"}


@pytest.mark.parametrize("running", [True, False])
def test_what_runs_may_run_on(cluster, running):
    if running:
        cluster.runs("small")
    green = {"version": "b" * 64, "repetitions": 4}
    values = values_of("small")
    error = cluster.error_of(values | {"bundles": values["bundles"] | {"green": green}})
    assert "openapi" in error  # beyond the templates
    looked_up = {path for _, path in cluster.asked if path.startswith(_DEPLOYMENTS)}
    names = {f"demo-{bundle}-shard-00{i}" for bundle in ("blue", "green") for i in range(4)}
    assert {_DEPLOYMENTS + name for name in names} <= looked_up
