"""Who may import whom, and what serving must never import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("trainer", "shard_server", "aggregator")


def imports_of(path):
    """Top-level packages that a module imports anywhere, as (package, line)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name.split(".")[0], node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0], node.lineno


@pytest.mark.parametrize("package", ["mach", *SERVICES])
def test_no_package_imports_a_service_but_its_own(package):
    modules = list((ROOT / package).rglob("*.py"))
    assert modules
    for module in modules:
        if (ROOT / "mach" / "cli") in module.parents:
            continue
        for name, line in imports_of(module):
            assert name not in SERVICES or name == package, f"{module}:{line} imports {name}"


def test_help_loads_nothing_heavy():
    loaded = run("import mach.cli.app; mach.cli.app.build_app()")
    assert loaded.isdisjoint({"torch", "onnx", "onnxruntime", "numba", "pyarrow"})


@pytest.mark.parametrize("module", ["shard_server.__main__", "aggregator.__main__"])
def test_serving_imports_no_training_library(module):
    assert run(f"import {module}").isdisjoint({"torch", "onnx", "trainer", "opentelemetry"})


def test_the_client_is_light():
    heavy = {"torch", "onnx", "onnxruntime", "numba", "opentelemetry"}
    assert run("import mach.client").isdisjoint(heavy)


def run(code):
    """Packages loaded by ``code`` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return {name.split(".")[0] for name in done.stdout.split()}
