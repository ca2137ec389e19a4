"""Objects against the schemas of Kubernetes and of the operators whose objects the chart makes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
from kubernetes_validate import utils

Object = dict[str, Any]

#: The newest three that are known.
VERSIONS = [".".join(version.split(".")[:2]) for version in utils.all_versions()]
VERSIONS = sorted(set(VERSIONS), key=lambda v: [int(part) for part in v.split(".")])[-3:]

# It reads its megabytes of definitions anew for every object.
utils.schema_contents = cache(utils.schema_contents)

_OPERATORS = {"monitoring.coreos.com", "keda.sh"}


@cache
def _custom(kind: str) -> Any:
    return json.loads((Path(__file__).parent / f"{kind.lower()}.json").read_text())


@cache
def _definitions(version: str) -> Any:
    folder = Path(utils.__file__).parent / "kubernetes-json-schema"
    return json.loads((folder / f"v{version}.0-local-strict" / "_definitions.json").read_text())[
        "$defs"
    ]


def problems(item: Object, version: str) -> Iterator[str]:
    """What a schema, or the keys of a list, forbids."""
    where = f"{item['kind']}/{item['metadata']['name']}"
    if item["apiVersion"].split("/")[0] in _OPERATORS:
        try:
            jsonschema.validate(item, _custom(item["kind"]))
        except jsonschema.ValidationError as error:
            yield f"{where}: {error.json_path}: {error.message}"
        return
    try:
        kubernetes_validate.validate(item, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{where}: {'.'.join(map(str, error.path))}: {error.message}"
    definitions = _definitions(version)
    group, _, api = item["apiVersion"].rpartition("/")
    for definition in definitions.values():
        for names in definition.get("x-kubernetes-group-version-kind", []):
            if (names["group"], names["version"], names["kind"]) == (group, api, item["kind"]):
                yield from _twice(item, definition, definitions, where)
                return


def _twice(value: Any, schema: Any, definitions: Any, where: str) -> Iterator[str]:
    """Entries of a list that the API server takes for one: their keys are the same."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    if isinstance(value, list):
        keys = schema.get("x-kubernetes-list-map-keys", [])
        seen = [tuple(entry.get(key) for key in keys) for entry in value] if keys else []
        for entry in {entry for entry in seen if seen.count(entry) > 1}:
            yield f"{where}: {dict(zip(keys, entry, strict=True))} is there more than once"
        for index, entry in enumerate(value):
            yield from _twice(entry, schema.get("items", {}), definitions, f"{where}[{index}]")
    elif isinstance(value, dict):
        for name, entry in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if isinstance(inner, dict):
                yield from _twice(entry, inner, definitions, f"{where}.{name}")
