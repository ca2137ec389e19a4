"""fastText (Joulin et al., EACL 2017), supervised.

Settings: ``text`` (see ``text.py``) and ``train``, keyword arguments of ``train_supervised``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import fasttext
from text import normalize
from worker import Search, Settings, main

PREFIX = "__label__"


def train(
    texts: list[str],
    labels: list[list[int]],
    num_classes: int,
    model_dir: Path,
    settings: Settings,
    threads: int,
) -> None:
    with tempfile.NamedTemporaryFile("w", dir=model_dir, suffix=".txt") as file:
        for text, classes in zip(texts, labels, strict=True):
            named = " ".join(f"{PREFIX}{c}" for c in classes)
            file.write(f"{named} {normalize(text, **settings['text'])}\n")
        file.flush()
        model = fasttext.train_supervised(
            file.name, thread=threads, verbose=0, seed=0, **settings["train"]
        )
    model.save_model(str(model_dir / "model.bin"))


def load(model_dir: Path, settings: Settings) -> Search:
    fasttext.FastText.eprint = lambda _: None  # it warns on every load
    model = fasttext.load_model(str(model_dir / "model.bin"))

    def search(texts: list[str], depth: int) -> list[Any]:
        corpus = [normalize(text, **settings["text"]) for text in texts]
        found, _ = model.predict(corpus, k=depth)
        return [[int(name[len(PREFIX) :]) for name in names] for names in found]

    return search


if __name__ == "__main__":
    main(train, load)
