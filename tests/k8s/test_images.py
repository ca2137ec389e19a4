"""The images, as far as that is possible without building them."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from functools import cache

import pytest
import yaml
from dockerfile_parse import DockerfileParser
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.k8s.rendering import CHART, ROOT

IMAGES = ROOT / "k8s" / "images"
CONTAINERFILE = IMAGES / "Containerfile"
FINAL = {
    "serving": ("base-cpu", "cpu,store,trace"),
    "serving-gpu": ("base-gpu", "gpu,store,trace"),
    "trainer": ("base-cpu", "cpu,train,store"),
}
COMPILERS = re.compile(r"\b(gcc|g\+\+|clang|build-essential|make|cmake|rustc|cargo|python3?-dev)\b")


@cache
def stages():
    """Instructions of each stage, by its name, as (instruction, value)."""
    parser = DockerfileParser(fileobj=CONTAINERFILE.open("rb"))
    found: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for step in parser.structure:
        if step["instruction"] == "FROM":
            image, _, name = step["value"].partition(" AS ")
            current = found.setdefault(name, [])
            current.append(("FROM", image))
        elif step["instruction"] != "COMMENT":
            current.append((step["instruction"], step["value"]))
    return found


def values(stage, instruction):
    return [value for name, value in stages()[stage] if name == instruction]


def test_hadolint_is_content():
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    done = subprocess.run([hadolint, CONTAINERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_object(tmp_path):
    wrong = tmp_path / "Containerfile"
    wrong.write_text(CONTAINERFILE.read_text().replace("WORKDIR /src", "WORKDIR src"))
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    assert subprocess.run([hadolint, wrong], capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("name", FINAL)
def test_final_images_hold_what_was_built_and_nothing_that_builds(name):
    base, _ = FINAL[name]
    assert values(name, "FROM") == [base]
    assert values(name, "COPY") == [f"--from=build-{name} /opt/mach /opt/mach"]
    assert values(name, "RUN") == values(name, "ADD") == []
    assert values(f"build-{name}", "FROM") == [base]


@pytest.mark.parametrize("name", FINAL)
def test_final_images_run_as_a_number_that_is_not_root(name):
    (user,) = values(name, "USER")
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", user)
    chart = (CHART / "templates" / "_pods.tpl").read_text()
    assert f"runAsUser: {user.split(':')[0]}" in chart
    assert f"runAsGroup: {user.split(':')[1]}" in chart


@pytest.mark.parametrize("name", FINAL)
def test_final_images_work_with_a_read_only_root(name):
    environment = " ".join(values(name, "ENV")).split()
    for entry in ("HOME=/tmp", "NUMBA_CACHE_DIR=/tmp/numba", "PYTHONDONTWRITEBYTECODE=1"):
        assert entry in environment
    assert "PATH=/opt/mach/bin:$PATH" in environment
    assert values(name, "WORKDIR") == ["/tmp"]
    assert values(name, "VOLUME") == []


@pytest.mark.parametrize("name", ["serving", "serving-gpu"])
def test_serving_images_bring_compiled_code(name):
    assert values(f"build-{name}", "RUN")[-1] == "/opt/mach/bin/mach compile /opt/mach/compiled"
    assert "MACH_COMPILED=/opt/mach/compiled" in " ".join(values(name, "ENV")).split()


@pytest.mark.parametrize("name", FINAL)
def test_final_images_run_the_chart_s_arguments_as_they_are(name):
    """A base's entry point would come before them."""
    assert values(name, "ENTRYPOINT") == ["[]"]


@pytest.mark.parametrize("name", FINAL)
def test_labels_of_the_open_container_initiative(name):
    labels = " ".join(values(name, "LABEL"))
    for key in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{key}=" in labels
    assert 'licenses="Apache-2.0"' in labels
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"VERSION={version}" in values(name, "ARG")


def test_nothing_is_compiled():
    for stage in stages():
        for command in values(stage, "RUN"):
            assert not COMPILERS.search(command), (stage, command)
    assert "--only-binary :all:" in (IMAGES / "install.sh").read_text()


@pytest.mark.parametrize("name", FINAL)
def test_builds_install_their_extras(name):
    _, extras = FINAL[name]
    runs = values(f"build-{name}", "RUN")
    assert runs[0].endswith(f"sh /src/install.sh {extras}")
    assert "--mount=from=wheelhouse" in runs[0]


def test_the_source_is_what_the_package_is_made_of():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {
        pattern.rstrip("*")
        for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    copied = {source for line in values("source", "COPY") for source in line.split()[:-1]}
    files = {"pyproject.toml", "README.md", "LICENSE", "k8s/images/install.sh"}
    assert copied == packages | files
    allowed = (IMAGES / "Containerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in allowed if line.startswith("!")} == copied
    for path in copied:
        assert (ROOT / path).exists()


def test_the_chart_names_these_images_at_its_own_version():
    images = yaml.safe_load((CHART / "values.yaml").read_text())["images"]
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert version == project["version"]
    named = {images[key] for key in ("serving", "servingGpu", "trainer")}
    assert named == {f"mach-fleet/{name}:{version}" for name in FINAL}


def own_requirements():
    """What pyproject.toml says, as a wheel's metadata would; an older install may differ."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra, requirements in project["optional-dependencies"].items():
        for requirement in map(Requirement, requirements):
            marker = f"extra == '{extra}'"
            if requirement.marker is not None:
                marker = f"({requirement.marker}) and {marker}"
            requirement.marker = Marker(marker)
            lines.append(str(requirement))
    return lines


def requirements(name, extras):
    """Distributions that installing ``name[extras]`` brings, those not installed here included."""
    found: set[str] = set()
    waiting = [(canonicalize_name(name), frozenset(extras))]
    seen = set()
    while waiting:
        distribution, wanted = item = waiting.pop()
        if item in seen:
            continue
        seen.add(item)
        found.add(distribution)
        if distribution == "mach-fleet":
            lines = own_requirements()
        else:
            try:
                lines = importlib.metadata.requires(distribution) or []
            except importlib.metadata.PackageNotFoundError:
                continue
        for line in lines:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": e}) for e in (wanted or {""})):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found


@pytest.mark.parametrize("extras", ["cpu,store,trace", "gpu,store,trace"])
def test_serving_images_have_no_training_libraries(extras):
    found = requirements("mach-fleet", extras.split(","))
    assert not found & {"torch", "triton", "matplotlib", "pytest"}
    assert "onnx" in found  # models are joined, or their weights taken out for a GPU
    assert ("onnxruntime" in found, "onnxruntime-gpu" in found) == (
        "cpu" in extras,
        "gpu" in extras,
    )
    assert {"grpcio", "numba", "s3fs", "gcsfs", "opentelemetry-sdk"} <= found
    assert "torch" in requirements("mach-fleet", ["train"])


def importable(code, extras):
    """Whether code runs where only what ``mach-fleet[extras]`` brings can be imported."""
    available = requirements("mach-fleet", extras)
    missing = [
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if not {canonicalize_name(owner) for owner in owners} & available
    ]
    hide = f"import sys; sys.modules.update(dict.fromkeys({missing!r}))\n"  # None: ImportError
    command = [sys.executable, "-c", hide + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.returncode == 0, done.stderr


TRACING = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter, mach.tracing.making"


@pytest.mark.parametrize(
    "program", ["shard_server.__main__", "aggregator.__main__", "s3fs, gcsfs", TRACING]
)
def test_serving_images_have_all_that_serving_imports(program):
    works, message = importable(
        f"import {program}, mach.store; from mach.cli.app import build_app; build_app()",
        ["cpu", "store", "trace"],
    )
    assert works, message


def test_what_an_image_lacks_is_noticed():
    assert not importable("import shard_server.__main__", ["store"])[0]
    assert not importable("import torch", ["cpu", "store"])[0]
    assert not importable("import s3fs", ["cpu"])[0]
    assert not importable(f"import {TRACING}", ["cpu"])[0]


@pytest.fixture
def fake_python(tmp_path):
    """A python3 that makes an environment whose python writes down what it is asked."""
    log = tmp_path / "log"
    inner = f'#!/bin/sh\necho "$@" >> {log}\n'
    tools = tmp_path / "tools"
    tools.mkdir()
    python = tools / "python3"
    python.write_text(
        '#!/bin/sh\nmkdir -p "$3/bin"\n'
        f'cat > "$3/bin/python" <<\'END\'\n{inner}END\nchmod +x "$3/bin/python"\n'
    )
    python.chmod(0o755)

    def install(extras, wheels):
        wheelhouse = tmp_path / "wheelhouse"
        wheelhouse.mkdir()
        for wheel in wheels:
            (wheelhouse / wheel).touch()
        environment = {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "MACH_TARGET": str(tmp_path / "target"),
            "MACH_WHEELHOUSE": str(wheelhouse),
            "MACH_SOURCE": "/a/source",
        }
        script = ["sh", str(IMAGES / "install.sh"), extras]
        subprocess.run(script, env=environment, check=True)
        return log.read_text().splitlines()

    return install


def test_install_takes_the_source_and_the_index_without_a_wheelhouse(fake_python):
    install, check, clean = fake_python("cpu,store", [])
    assert install.endswith(" /a/source[cpu,store]")
    assert "--no-index" not in install
    assert (check, clean) == ("-m pip check", "-m pip uninstall --yes --quiet pip")


def test_install_takes_the_wheelhouse_alone_if_it_is_whole(fake_python, tmp_path):
    install = fake_python("gpu,store", ["mach_fleet-0.1.0-py3-none-any.whl"])[0]
    assert f"--no-index --find-links {tmp_path / 'wheelhouse'} mach-fleet[gpu,store]" in install


def test_the_build_checks_cuda_against_onnx_runtime():
    """The command of the Containerfile, with a fitting and an unfitting CUDA."""
    command = values("build-serving-gpu", "RUN")[1]
    code = re.fullmatch(r'/opt/mach/bin/python -c "(.*)"', command, re.DOTALL)[1].replace(
        "\\\n", ""
    )
    stub = (
        "import sys, types\n"
        "built = types.SimpleNamespace(cuda_version='13.0')\n"
        "sys.modules['onnxruntime'] = types.ModuleType('onnxruntime')\n"
        "capi = sys.modules['onnxruntime.capi'] = types.ModuleType('capi')\n"
        "capi.build_and_package_info = built\n"
    )
    for version, code_expected in (("13.0.1", 0), ("12.8.1", 1)):
        done = subprocess.run(
            [sys.executable, "-c", stub + code],
            env={**os.environ, "CUDA_VERSION": version},
            capture_output=True,
            check=False,
        )
        assert done.returncode == code_expected, done.stderr
