"""What CONTRIBUTING.md says of CI and of releases."""

from __future__ import annotations

import re
import tomllib

import yaml

from tests.k8s.rendering import CHART, ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_all_that_ci_runs_is_said():
    commands = [
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith("make ")
    ]
    assert commands
    (said,) = (line for line in TEXT.splitlines() if "what CI runs" in line)
    for command in commands:
        assert command in said


def test_every_file_that_has_the_version_is_named():
    releasing = TEXT.partition("## Releasing")[2]
    files = [ROOT / "pyproject.toml", *(ROOT / "docs").glob("*.md"), *(ROOT / "k8s").rglob("*")]
    forms = (f'version = "{VERSION}"', f":{VERSION}", f"ersion: {VERSION}", f"VERSION={VERSION}")
    having = [
        path.relative_to(ROOT).as_posix()
        for path in files
        if path.is_file() and any(form in path.read_text() for form in forms)
    ]
    assert len(having) >= 5
    assert [path for path in having if f"`{path}`" not in releasing] == []


def test_chart_and_guide_have_the_version():
    """Images and the chart's own tags: test_images.py."""
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["version"] == VERSION
    guide = (ROOT / "docs" / "kubernetes.md").read_text()
    tags = re.findall(r"mach-fleet/(?:serving|serving-gpu|trainer):([^ \n]+)", guide)
    assert len(tags) >= 5
    assert set(tags) == {VERSION}
