"""PECOS XR-Linear (Yu et al., JMLR 2022): its own TF-IDF, PIFA label tree and linear rankers.

Settings: ``analyzers``, a list of ``{analyzer, ngram_range, …}`` as its vectorizer takes them;
``strip_accents``; ``train``, keyword arguments of ``XLinearModel.train``; ``index``, those of its
``Indexer``; ``beam``; ``post_processor``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as smat
from pecos.utils.featurization.text.vectorizers import Vectorizer
from pecos.xmc import Indexer, LabelEmbeddingFactory
from pecos.xmc.xlinear.model import XLinearModel
from text import normalize
from worker import Search, Settings, main


def train(
    texts: list[str],
    labels: list[list[int]],
    num_classes: int,
    model_dir: Path,
    settings: Settings,
    threads: int,
) -> None:
    corpus = [normalize(text, **settings["text"]) for text in texts]
    vectorizer = Vectorizer.train(
        corpus,
        {
            "type": "tfidf",
            "kwargs": {"base_vect_configs": settings["analyzers"], "threads": threads},
        },
        dtype=np.float32,
    )
    vectorizer.save(str(model_dir / "vectorizer"))
    features = vectorizer.predict(corpus, threads=threads)
    columns = np.fromiter((c for row in labels for c in row), np.int64)
    splits = np.cumsum([0, *map(len, labels)])
    truth = smat.csr_matrix(
        (np.ones(len(columns), np.float32), columns, splits), shape=(len(texts), num_classes)
    )
    embeddings = LabelEmbeddingFactory.create(truth, features, method="pifa", threads=threads)
    clusters = Indexer.gen(
        embeddings,
        indexer_type="hierarchicalkmeans",
        seed=0,
        threads=threads,
        **settings.get("index", {}),
    )
    model = XLinearModel.train(
        features, truth, C=clusters, threads=threads, **settings.get("train", {})
    )
    model.save(str(model_dir / "model"))


def load(model_dir: Path, settings: Settings) -> Search:
    vectorizer = Vectorizer.load(str(model_dir / "vectorizer"))
    model = XLinearModel.load(str(model_dir / "model"), is_predict_only=True)

    def search(texts: list[str], depth: int) -> list[Any]:
        corpus = [normalize(text, **settings["text"]) for text in texts]
        scores = model.predict(
            vectorizer.predict(corpus, threads=1),
            beam_size=settings["beam"],
            only_topk=depth,
            post_processor=settings["post_processor"],
            threads=1,
        )
        found = []
        for row in range(len(texts)):
            part = slice(scores.indptr[row], scores.indptr[row + 1])
            found.append(scores.indices[part][np.argsort(-scores.data[part], kind="stable")])
        return found

    return search


if __name__ == "__main__":
    main(train, load)
