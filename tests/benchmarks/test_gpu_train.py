"""The benchmark of training on a GPU, in its tiny size on a CPU."""

import itertools
import json

import numpy as np
import pytest

from benchmarks.gpu import arithmetic, report, train
from benchmarks.gpu.device import Limits
from benchmarks.gpu.queries import LONGEST, SHORTEST, generated_queries


def test_smoke(tmp_path, monkeypatch):
    out = tmp_path / "gpu-train.json"
    monkeypatch.setattr("sys.argv", ["train", "--smoke", "--device", "cpu", "--out", str(out)])
    train.main()
    found = json.loads(out.read_text())
    measured, projected = found["measured"], found["projected"]
    assert measured["group"] == 4
    assert measured["loss"][0] == pytest.approx(np.log(64), rel=0.1)
    assert 0 <= measured["waiting_share"] < 1
    assert 0.3 < sum(row["share"] for row in measured["kernels"]) <= 1.001
    seconds = measured["seconds"] / (measured["steps"] * 32 * 4) * 1e6
    assert projected["seconds_per_million_queries_per_repetition"] == pytest.approx(seconds)
    assert projected["hours_of_all_epochs"] == pytest.approx(10 * seconds * 10_000 / 1e6 * 4 / 3600)
    assert not [name for name, value in found["variants"].items() if "error" in value]
    assert found["device"]["device"] == "cpu"
    found["variants"]["small, autograd"] = {"error": "out of memory"}
    text = report.train(found)
    shown = projected["seconds_per_million_queries_per_repetition"]
    assert f"| the group | 4 | 32 | {shown:.3g} |  |" in text
    assert "| one repetition, one-vs-all | 1 | 32 |" in text
    assert "| small, autograd | out of memory | | | |" in text


def test_arithmetic_at_the_papers_scale():
    limits = Limits(bf16_flops=6e14, fp16_flops=6e14, copy_bytes=3e12, read_bytes=3e12,
                    cached_bytes=6e12, host_bytes=5e10)  # fmt: skip
    least = arithmetic.floor(train.PAPER, limits)
    assert least["flops_per_query"] == 240e6
    assert least["matrix_products_s"] == pytest.approx(0.4)
    assert least["adam_s"] == pytest.approx(1e6 / 8192 * 28 * 40e6 / 3e12)
    measured = {"seconds_per_million_queries_per_repetition": 0.8, "waiting_share": 0.01}
    projected = arithmetic.project(train.PAPER, limits, measured, 10)
    assert projected["share_of_matrix_rate"] == pytest.approx(0.5)
    assert projected["hours_per_epoch_of_all_repetitions"] == pytest.approx(70 * 0.8 * 32 / 3600)
    assert projected["hours_of_all_epochs_at_the_matrix_rate"] == pytest.approx(
        10 * 70 * 0.4 * 32 / 3600
    )


@pytest.mark.parametrize("option", ["--group", "--batch-size", "--seconds", "--epochs"])
def test_mistakes_are_one_sentence(option, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["train", "--smoke", option, "-1"])
    with pytest.raises(SystemExit) as caught:
        train.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"{option}: must be above 0\n"


def test_queries_are_the_same_every_time():
    def first(seed):
        return list(itertools.islice(generated_queries(1000, 5_000_000, 64, seed), 3))

    for one, same, other in zip(first(0), first(0), first(1), strict=True):
        np.testing.assert_array_equal(one.features.indices, same.features.indices)
        np.testing.assert_array_equal(one.classes, same.classes)
        assert not np.array_equal(one.classes, other.classes)
        one.features.check(1000)
        lengths = np.diff(one.features.splits)
        assert SHORTEST <= lengths.min() <= lengths.max() <= LONGEST
        assert one.classes.min() >= 0
        assert one.classes.max() < 5_000_000
        squares = np.add.reduceat(one.features.values**2, one.features.splits[:-1])
        np.testing.assert_allclose(squares, 1, rtol=1e-5)
