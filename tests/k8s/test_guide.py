"""The values that the guide shows are values that the chart takes."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.k8s.checks import CHECKS, Release
from tests.k8s.rendering import CHART, ROOT, render
from tests.k8s.schemas import VERSIONS, problems

GUIDE = (ROOT / "docs" / "kubernetes.md").read_text()
EXAMPLES = re.findall(r"```yaml\n# values\.yaml\n(.*?)```", GUIDE, re.DOTALL)


def test_the_guide_has_examples():
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("index", range(len(EXAMPLES)))
def test_examples_render_to_sound_objects(index):
    objects = render(yaml.safe_load(EXAMPLES[index]))
    assert objects
    assert [line for item in objects for line in problems(item, VERSIONS[-1])] == []
    release = Release(objects)
    found = {name: list(check(release)) for name, check in CHECKS.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_values_named_in_the_text_exist():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    sections = "|".join(values)
    named = re.findall(rf"`((?:{sections})(?:\.[A-Za-z-]+)+)(?::[^`]*)?`", GUIDE)
    assert len(named) > 10
    for path in set(named) - {"tls.crt", "tls.key"}:  # keys of Secrets
        node = values
        for part in path.split("."):
            if node == {}:  # free-form, such as flags
                break
            assert part in node, path
            node = node[part]


def test_the_images_named_are_targets():
    targets = set(re.findall(r"--target ([a-z-]+)", GUIDE))
    containerfile = (ROOT / "k8s" / "images" / "Containerfile").read_text()
    stages = set(re.findall(r"^FROM .* AS ([a-z-]+)$", containerfile, re.MULTILINE))
    assert targets == {"serving", "serving-gpu", "trainer"}
    assert targets <= stages
