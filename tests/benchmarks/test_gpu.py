"""The GPU benchmarks run, in a tiny size, where there is no GPU, and say what is missing."""

import json
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from benchmarks.gpu import agreement, device, merge, report, serve, ways  # noqa: E402 - needs torch
from benchmarks.gpu.torch_models import eager  # noqa: E402
from mach.inference.stacking import read_weights  # noqa: E402
from tests.mach.inference.exported import exported_bundle  # noqa: E402


def run(monkeypatch, module, tmp_path, *arguments):
    out = tmp_path / "result.json"
    monkeypatch.setattr(
        sys, "argv", ["x", "--smoke", "--device", "cpu", "--out", str(out), *arguments]
    )
    module.main()
    report = json.loads(out.read_text())
    assert report["device"]["device"] == "cpu"
    assert report["device"]["versions"]["torch"] == torch.__version__
    assert all(rate > 0 for rate in report["limits"].values())
    return report


def test_serving(monkeypatch, tmp_path):
    found = run(monkeypatch, serve, tmp_path)
    assert (found["quantization"], found["loss"]) == ("int4", "one-vs-all")
    ways_run = {(row["way"], row["batch"]) for row in found["rows"]}
    assert len(ways_run) == len(found["rows"]) == 8
    assert set(found["left_out"]) == {"PyTorch compiled", "PyTorch compiled, CUDA graphs"}
    for row in found["rows"]:
        assert row["p50_ms"] > 0
        assert row["times_floor"] > 0
    assert "| PyTorch eager | 4 |" in report.serve(found)


def test_merging(monkeypatch, tmp_path):
    found = run(monkeypatch, merge, tmp_path)
    assert found["correct"]["flat"]["equal"] == found["correct"]["flat"]["queries"] == 5
    assert {row["batch"] for row in found["rows"]} == {1, 5}
    assert "| flat | 5 | 32 | device |" in report.merge(found)


@pytest.mark.parametrize("kind", [("int8", "softmax"), ("int4", "one-vs-all")], ids="-".join)
def test_agreement(monkeypatch, tmp_path, kind):
    bundle = exported_bundle(tmp_path / "bundle", *kind)
    queries = tmp_path / "queries.csv"
    titles = bundle.catalog.table["title"].to_pylist()
    queries.write_text("query,product_id\n" + "".join(f"{t},P00001\n" for t in titles))
    found = run(monkeypatch, agreement, tmp_path, str(bundle.path), str(queries))
    assert found["queries"] == 50
    assert found["imitated"]
    assert 0 < found["largest_difference"] < 0.05
    assert found["k"]["10"]["shared"] > 0.98


def test_the_page_has_what_was_measured(tmp_path):
    page = report.PAGE.read_text()
    for name in report.RENDERERS:
        assert report.fill(page, name, report.render(name)) == page
        assert report.render(name, tmp_path) == report.NOT_MEASURED
    with pytest.raises(SystemExit, match="has no markers"):
        report.fill("", "serve", "")


def test_the_floors_are_the_arithmetic():
    """At the paper's size: 2.56 GB of output weights, 5.1 TFLOP for 64 queries."""
    size = ways.Size()
    small = read_weights(ways.make_model(ways.SMOKE, "fp16"))
    limits = device.Limits(*[1e12] * 6)
    one, many = (ways.floors(size, batch, small, limits) for batch in (1, 64))
    assert one["bytes_floor_ms"] == pytest.approx(2.57, abs=0.01)
    assert many["flops_floor_ms"] == pytest.approx(2 * 64 * 2000 * 20_032 * 32 / 1e9)
    assert many["copy_floor_ms"] == pytest.approx(64 * 20_000 * 32 / 1e9)


@pytest.mark.parametrize("quantization", ["none", "fp16", "int8", "int4"])
@pytest.mark.parametrize("loss", ["softmax", "one-vs-all"])
def test_the_yardstick_computes_the_same(quantization, loss):
    size = ways.SMOKE
    model = ways.make_model(size, quantization, loss)
    batch = ways.make_batch(size, 4)
    expected = ways.plain(size, model, "cpu")(batch)[0]
    codes, low, step = eager(read_weights(model), size.repetitions, "cpu")(batch)
    decoded = codes[1] * step[1] + low[1]
    assert np.abs(decoded - expected).max() <= step.max() * 0.51 + 0.05


def test_without_a_gpu_the_real_size_is_refused(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as exit_:
        device.choose_device(None, smoke=False)
    assert exit_.value.code == 2
    assert "finds no CUDA device; --smoke runs without one" in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit):
        device.choose_device(None, smoke=False)
    assert "PyTorch is missing" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SystemExit), device.needed("onnxruntime-gpu"):
        import onnxruntime  # noqa: F401
    assert "onnxruntime" in capsys.readouterr().err
