"""omikuji: Parabel (Prabhu et al., WWW 2018) and its relatives, with scikit-learn's TF-IDF.

Settings: ``text`` (see ``text.py``); ``vectorizers``, a list of keyword arguments of
``TfidfVectorizer``, whose features are joined; ``hyper``, omikuji's hyper-parameters; ``beam``;
``densify``, the density above which a weight vector is kept dense for speed.
"""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import omikuji
import scipy.sparse as smat
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize as unit_rows
from text import normalize
from worker import Search, Settings, main


def featurize(vectorizers: list[Any], texts: list[str], settings: Settings) -> smat.csr_matrix:
    corpus = [normalize(text, **settings["text"]) for text in texts]
    parts = [vectorizer.transform(corpus) for vectorizer in vectorizers]
    joined = parts[0] if len(parts) == 1 else unit_rows(smat.hstack(parts, format="csr"))
    joined.sort_indices()
    return joined


def train(
    texts: list[str],
    labels: list[list[int]],
    num_classes: int,
    model_dir: Path,
    settings: Settings,
    threads: int,
) -> None:
    corpus = [normalize(text, **settings["text"]) for text in texts]
    vectorizers = [
        TfidfVectorizer(
            dtype=np.float32, **(options | {"ngram_range": tuple(options["ngram_range"])})
        ).fit(corpus)
        for options in settings["vectorizers"]
    ]
    (model_dir / "vectorizers.pickle").write_bytes(pickle.dumps(vectorizers))
    features = featurize(vectorizers, texts, settings)
    # omikuji reads nothing but the Extreme Classification Repository's text format.
    with tempfile.TemporaryDirectory(dir=model_dir) as folder:
        path = Path(folder) / "train.txt"
        with path.open("w") as file:
            file.write(f"{features.shape[0]} {features.shape[1]} {num_classes}\n")
            for row, classes in enumerate(labels):
                part = slice(features.indptr[row], features.indptr[row + 1])
                pairs = zip(features.indices[part], features.data[part], strict=True)
                file.write(",".join(map(str, classes)))
                file.writelines(f" {column}:{value:.6g}" for column, value in pairs)
                file.write("\n")
        hyper = omikuji.Model.default_hyper_param()
        for name, value in settings.get("hyper", {}).items():
            setattr(hyper, name, value)
        model = omikuji.Model.train_on_data(str(path), hyper, n_threads=threads)
    model.save(str(model_dir / "model"))


def load(model_dir: Path, settings: Settings) -> Search:
    vectorizers = pickle.loads((model_dir / "vectorizers.pickle").read_bytes())
    model = omikuji.Model.load(str(model_dir / "model"))
    model.init_prediction_thread_pool(1)
    if settings.get("densify"):
        model.densify_weights(settings["densify"], n_threads=1)

    def search(texts: list[str], depth: int) -> list[Any]:
        features = featurize(vectorizers, texts, settings)
        found: list[Any] = []
        for row in range(len(texts)):
            part = slice(features.indptr[row], features.indptr[row + 1])
            pairs = zip(features.indices[part].tolist(), features.data[part].tolist(), strict=True)
            ranked = model.predict(pairs, beam_size=settings["beam"], top_k=depth)
            found.append([label for label, _ in ranked])
        return found

    return search


if __name__ == "__main__":
    main(train, load)
