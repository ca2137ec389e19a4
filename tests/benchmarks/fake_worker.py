"""A system that ranks classes by how often they follow a query's words in train."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import benchmarks.accuracy

sys.path.insert(0, str(Path(benchmarks.accuracy.__path__[0]) / "workers"))

from worker import Search, Settings, main


def train(
    texts: list[str],
    labels: list[list[int]],
    num_classes: int,
    model_dir: Path,
    settings: Settings,
    threads: int,
) -> None:
    if settings.get("fail"):
        raise RuntimeError("the fake failed as it was told to")
    with Path(settings["trained"]).open("a") as file:
        file.write(f"{num_classes} {threads}\n")
    table: dict[str, Counter[int]] = {}
    for text, classes in zip(texts, labels, strict=True):
        for word in text.split():
            table.setdefault(word, Counter()).update(classes)
    (model_dir / "table.json").write_text(json.dumps(table))


def load(model_dir: Path, settings: Settings) -> Search:
    table = json.loads((model_dir / "table.json").read_text())

    def search(texts: list[str], depth: int) -> list[Any]:
        found = []
        for text in texts:
            scores: Counter[str] = Counter()
            for word in text.split():
                scores.update(table.get(word, {}))
            ranked = [int(c) for c, _ in scores.most_common(depth)]
            found.append(ranked + ranked[:1] if settings.get("repeat") else ranked)
        return found

    return search


if __name__ == "__main__":
    main(train, load)
