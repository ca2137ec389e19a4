"""This project's bundle, in process: what ``mach evaluate`` measures, text to products.

Trained by ``mach train`` itself; only ``predict`` is here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from worker import Search, Settings, main


def load(model_dir: Path, settings: Settings) -> Search:
    import numpy as np  # noqa: PLC0415 - after the process is kept to one core

    from mach.bundle import Bundle  # noqa: PLC0415
    from mach.evaluation import LocalPipeline  # noqa: PLC0415

    bundle = Bundle.open(model_dir / "bundle")
    bundle.verify()
    pipeline = LocalPipeline(bundle, threads=1)
    ids = (Path(settings["data"]) / "classes.txt").read_text().removesuffix("\n").split("\n")
    number = {product: position for position, product in enumerate(ids)}
    products = bundle.catalog.table["product_id"].to_pylist()
    to_class = np.array([number[product] for product in products], np.int64)

    def search(texts: list[str], depth: int) -> list[Any]:
        return [to_class[found] for found in pipeline.search(texts, depth)]

    return search


if __name__ == "__main__":
    main(None, load)
