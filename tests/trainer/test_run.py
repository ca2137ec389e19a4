"""Whole runs on a tiny store: what comes out, what is kept, what happens again."""

import errno
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mach.bundle import Bundle
from mach.errors import BundleError, ConfigError, DataError, InvalidInput
from mach.evaluation import evaluate
from mach.merge.rule import LEAST_EXPONENT
from trainer import collect, finish, repetition, workspace
from trainer.interactions import read_queries
from trainer.progress import Reporter
from trainer.run import collect_bundle, prepare_data, train, train_one
from trainer.settings import MAX_WEIGHT, MIN_WEIGHT, TrainSettings, default_buckets
from trainer.workspace import Workspace


def with_settings(job, **changes):
    return replace(job, settings=job.settings.model_copy(update=changes))


class Killed(BaseException):
    """Like a signal: nothing catches it."""


def test_a_store_is_trained_and_found_again(job, store, silent):
    manifest = train(with_settings(job, epochs=12, char_ngrams_min=3, char_ngrams_max=4), silent)
    bundle = Bundle.open(job.out)
    bundle.verify()
    assert bundle.version == manifest.version
    assert (manifest.num_classes, manifest.num_buckets, manifest.num_repetitions) == (120, 32, 2)
    assert "title" in bundle.catalog.attributes
    (result,) = evaluate(bundle, read_queries([store.held_out]))
    # A guess finds 1 of 120; the three most popular products have a quarter of the clicks.
    assert result.metrics["P@1"] > 0.45
    assert result.metrics["R@10"] > 0.7
    assert not Workspace(job.out).root.exists()
    assert [path.name for path in job.out.parent.iterdir()] == [job.out.name]


def test_what_the_manifest_tells(job, silent):
    manifest = train(job, silent)
    training = manifest.training
    assert training["settings"]["hidden"] == 16
    data = training["data"]
    assert data["rows"] == 2000
    assert data["queries"] + data["held_out_queries"] + data["queries_without_features"] <= 2000
    assert set(training["held_out"]) == {"P@1", "P@5", "R@20"}
    assert manifest.merge["rule"] == "power-mean"
    assert training["held_out"] == training["merge_choice"][f"{manifest.merge['exponent']:g}"]
    for number, record in enumerate(training["repetitions"]):
        assert record["repetition"] == number
        losses = [epoch["held_out_loss"] for epoch in record["history"]]
        assert record["best_epoch"] == 1 + losses.index(min(losses))
    json.dumps(training)


def test_the_same_seed_gives_the_same_version(job, tmp_path, silent):
    first = train(job, silent)
    second = train(replace(job, out=tmp_path / "second"), silent)
    other = train(replace(with_settings(job, seed=1), out=tmp_path / "other"), silent)
    assert first.version == second.version != other.version


def test_repetitions_do_not_depend_on_each_other(job, tmp_path, silent):
    two = train(job, silent)
    three = train(replace(with_settings(job, repetitions=3), out=tmp_path / "three"), silent)
    for name in ("repetition-000.onnx", "repetition-001.onnx", "features.arrow", "catalog.arrow"):
        assert two.files[name] == three.files[name]


def test_parts_one_by_one_are_the_whole(job, tmp_path, silent):
    whole = train(job, silent)
    parts = replace(job, out=tmp_path / "parts")
    prepare_data(parts, silent)
    with pytest.raises(BundleError, match="repetition 0 is not finished"):
        collect_bundle(parts, silent)
    train_one(parts, 1, silent)
    with pytest.raises(BundleError, match="repetition 0 is not finished"):
        collect_bundle(parts, silent)
    train_one(parts, 0, silent)
    train_one(parts, 0, silent)
    assert collect_bundle(parts, silent).version == whole.version
    assert [path.name for path in parts.out.parent.glob("*parts*")] == ["parts"]


def test_two_workers_are_one(job, tmp_path, silent):
    one = train(job, silent)
    two = train(replace(with_settings(job, workers=2), out=tmp_path / "two"), silent)
    assert one.version == two.version


# Interruptions --------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch):
    """Numbers of the repetitions whose training was begun."""
    begun = []
    original = repetition._Run.run
    monkeypatch.setattr(
        repetition._Run, "run", lambda self: begun.append(self._repetition) or original(self)
    )
    return begun


def kill_in(monkeypatch, owner, name, at):
    """Make the ``at``-th call of a function die."""
    original, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            raise Killed
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, dying)


@pytest.mark.parametrize(
    ("owner", "name", "at", "begun"),
    [
        (finish, "write_model", 2, [0, 1, 1]),  # in export of the second
        (repetition._Run, "_judge", 5, [0, 1, 1]),  # in the second epoch of the second
        (repetition, "write_checkpoint", 2, [0, 0, 1]),  # in a checkpoint of the first
        (collect, "seal", 1, [0, 1]),  # with all trained
    ],
)
def test_a_killed_run_continues(
    job, tmp_path, silent, monkeypatch, trained, owner, name, at, begun
):
    whole = train(replace(job, out=tmp_path / "whole"), silent)
    trained.clear()
    with monkeypatch.context() as patch:
        kill_in(patch, owner, name, at)
        with pytest.raises(Killed):
            train(job, silent)
    assert not job.out.exists()
    assert train(job, silent).version == whole.version
    assert trained == begun


def test_epochs_are_not_repeated(job, silent, monkeypatch):
    with monkeypatch.context() as patch:
        kill_in(patch, repetition._Run, "_judge", 3)
        with pytest.raises(Killed):
            train(job, silent)
    epochs = []
    original = repetition._Run._run_epoch
    monkeypatch.setattr(
        repetition._Run,
        "_run_epoch",
        lambda self: epochs.append((self._repetition, self._record.epoch)) or original(self),
    )
    train(job, silent)
    assert epochs == [(0, 2), (1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "nonsense", "another shape"])
def test_a_corrupt_checkpoint_starts_the_repetition_over(
    job, tmp_path, silent, monkeypatch, trained, damage
):
    whole = train(replace(job, out=tmp_path / "whole"), silent)
    with monkeypatch.context() as patch:
        kill_in(patch, repetition._Run, "_judge", 3)
        with pytest.raises(Killed):
            train(job, silent)
    (path,) = Workspace(job.out).root.glob("model-*/*.checkpoint.npz")
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        path.write_bytes(data[:1000] + bytes([data[1000] ^ 255]) + data[1001:])
    elif damage == "nonsense":
        path.write_bytes(b"nonsense")
    else:
        with np.load(path) as file:
            arrays = dict(file)
        arrays["model.embedding"] = arrays["model.embedding"][:, :-1]
        np.savez(path, **arrays)
    assert train(job, silent).version == whole.version


def test_a_damaged_model_is_trained_again(job, tmp_path, silent, trained):
    whole = train(replace(job, out=tmp_path / "whole"), silent)
    train_one(job, 0, silent)
    train_one(job, 1, silent)
    (path,) = Workspace(job.out).root.glob("model-*/repetition-001.onnx")
    path.write_bytes(path.read_bytes()[:-1])
    trained.clear()
    assert train(job, silent).version == whole.version
    assert trained == [1]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("train/classes.bin", lambda data: data[:-1]),
        ("train/examples.json", lambda data: b"[]"),
        ("catalog.arrow", lambda data: data[:-1]),
        ("catalog.arrow", lambda data: data.replace(b"p", b"q")),
        ("features.arrow", lambda data: data[:500]),
        ("data.json", lambda data: b"[]"),
    ],
)
def test_damaged_data_are_prepared_again(job, tmp_path, silent, name, damage):
    train_one(job, 0, silent)
    (path,) = Workspace(job.out).root.glob(f"data-*/{name}")
    whole = path.read_bytes()
    assert damage(whole) != whole
    path.write_bytes(damage(whole))
    with pytest.raises(DataError, match=r"damaged|cannot be read"):
        collect_bundle(job, silent)
    train(job, silent)
    bundle = Bundle.open(job.out)
    bundle.verify()
    assert len(bundle.catalog) == bundle.manifest.num_classes


def damaged_data(job):
    """Prepare the data of a job and cut one of their files short; gives their directory."""
    prepare_data(job, Reporter.silent())
    (path,) = Workspace(job.out).root.glob("data-*/train/classes.bin")
    path.write_bytes(path.read_bytes()[:-1])
    return path.parent.parent


def test_prepare_prepares_damaged_data_again(job, tmp_path, silent, capsys):
    whole = train(replace(job, out=tmp_path / "whole"), silent)
    directory = damaged_data(job)
    for part in (lambda: train_one(job, 0, silent), lambda: collect_bundle(job, silent)):
        with pytest.raises(DataError, match="is damaged, --prepare makes it anew: ") as caught:
            part()
        assert caught.value.path == directory
    prepare_data(job, Reporter())
    assert "preparing the data again" in capsys.readouterr().err
    train_one(job, 0, silent)
    train_one(job, 1, silent)
    assert collect_bundle(job, silent).version == whole.version


def test_damaged_data_of_a_live_run_are_left(job, silent):
    directory = damaged_data(job)
    space = Workspace(job.out)
    with (
        space.lock(space.root, "run", "training"),
        pytest.raises(ConfigError, match="another process is training in"),
    ):
        prepare_data(job, silent)
    assert directory.exists()


def aged(path, seconds=0.0):
    """Make a file or a directory with one in it, last written to so long ago."""
    if path.suffix == ".staging":
        path.mkdir()
        (path / "manifest.json").touch()
    else:
        path.touch()
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))
    return path


def test_staging_of_a_killed_run_is_removed(job, tmp_path, silent):
    dead = [aged(tmp_path / f".bundle.{name}.staging") for name in ("abcdef12", "_2345678")]
    others = [
        aged(tmp_path / name)
        for name in (".bundle.more.abcdef12.staging", ".bundle2.abcdef12.staging", "x.staging")
    ]
    train(job, silent)
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in others)


def test_staging_of_a_live_run_is_left(job, tmp_path, silent):
    with Workspace(job.out).staging() as live:
        with pytest.raises(ConfigError, match="another process is sealing the bundle"):
            train(job, silent)
        assert live.parent == tmp_path
        assert live.is_dir()
    assert not live.exists()


def test_without_locks_only_old_staging_is_removed(job, tmp_path, silent, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(workspace.fcntl, "flock", refuse)
    old = aged(tmp_path / ".bundle.abcdef12.staging", 2 * 86_400)
    new = aged(tmp_path / ".bundle.abcdef34.staging", 3600)
    train(job, silent)
    assert (old.exists(), new.exists()) == (False, True)


@pytest.mark.parametrize("part", [train, lambda job, silent: train_one(job, 0, silent)])
def test_drafts_of_a_killed_run_are_removed(job, silent, monkeypatch, part):
    prepare_data(job, silent)
    (models,) = Workspace(job.out).root.glob("model-*")
    kinds = ("onnx", "json", "checkpoint.npz")
    dead = [aged(models / f".repetition-000.{kind}.abcd_123", 3600) for kind in kinds]
    live = [aged(models / f".repetition-000.{kind}.abcd_456", 60) for kind in kinds]
    other = aged(models / ".repetition-000.lock", 3600)
    kill_in(monkeypatch, repetition._Run, "run", 1)
    with pytest.raises(Killed):
        part(job, silent)
    assert not any(path.exists() for path in dead)
    assert all(path.exists() for path in (*live, other))


def test_other_settings_start_over(job, silent, trained, capsys):
    train_one(job, 0, silent)
    train(with_settings(job, hidden=8), Reporter())
    assert "inputs or settings have changed since the last run" in capsys.readouterr().err
    assert trained == [0, 0, 1]


def test_more_repetitions_keep_what_is_finished(job, silent, trained):
    train_one(job, 0, silent)
    train(with_settings(job, repetitions=3), silent)
    assert trained == [0, 1, 2]


def test_a_changed_log_starts_over(job, store, tmp_path, silent, trained):
    log = tmp_path / "log.parquet"
    shutil.copy(store.clicks, log)
    job = replace(job, interactions=[log])
    train_one(job, 0, silent)
    pq.write_table(pq.read_table(log).slice(100), log)
    manifest = train(job, silent)
    assert trained == [0, 0, 1]
    assert manifest.training["data"]["rows"] == 1900


def test_two_runs_at_once_are_refused(job, silent):
    workspace = Workspace(job.out)
    with (
        workspace.lock(workspace.root, "run", "training"),
        pytest.raises(ConfigError, match="another process is training in"),
    ):
        train(job, silent)


# Data -----------------------------------------------------------------------------------------


def test_without_a_catalog_the_products_are_those_of_the_log(job, store, silent):
    manifest = train(replace(job, catalog=None), silent)
    products = sorted(set(pq.read_table(store.clicks)["product_id"].to_pylist()))
    catalog = Bundle.open(job.out).catalog
    assert catalog.product_ids(range(len(catalog))) == products
    assert manifest.num_classes == len(products)


def test_products_not_in_the_catalog_are_counted(job, store, tmp_path, silent):
    catalog = pq.read_table(store.products)
    small = tmp_path / "catalog.parquet"
    pq.write_table(catalog.slice(0, 100), small)
    missing = set(catalog["product_id"].to_pylist()[100:])
    clicked = pq.read_table(store.clicks)["product_id"].to_pylist()
    manifest = train(replace(job, catalog=small), silent)
    (count,) = manifest.training["data"]["skipped"].values()
    assert count == sum(product in missing for product in clicked) > 0
    pq.write_table(catalog.slice(0, 5), small)
    with pytest.raises(DataError, match="more than max_unknown allows"):
        train(replace(job, catalog=small, out=tmp_path / "b2"), silent)


def write(path, queries, products, **more):
    pq.write_table(pa.table({"query": queries, "product_id": products, **more}), path)
    return path


def test_duplicates_and_weights_add_up(job, tmp_path, silent):
    queries = [f"word{i % 50} other{i % 7}" for i in range(700)]
    products = [f"p{i % 50}" for i in range(700)]
    once = write(tmp_path / "once.parquet", queries, products, weight=[3.0] * 700)
    thrice = write(tmp_path / "thrice.parquet", queries * 3, products * 3)
    job = replace(job, catalog=None)
    versions = [
        train(replace(job, interactions=[path], out=tmp_path / path.stem), silent).version
        for path in (once, thrice)
    ]
    assert versions[0] == versions[1]


def test_the_largest_and_smallest_weights_train(job, tmp_path, silent):
    queries = [f"word{i % 50} other{i % 7}" for i in range(700)]
    products = [f"p{i % 50}" for i in range(700)]
    settings = {"catalog": None, "settings": job.settings.model_copy(update={"weight_power": 1.0})}
    for name, weights in {
        "large": [MAX_WEIGHT] * 700,
        "small": [MIN_WEIGHT] * 700,
        "both": [MIN_WEIGHT, MAX_WEIGHT] * 350,
    }.items():
        log = write(tmp_path / f"{name}.parquet", queries, products, weight=weights)
        train(replace(job, interactions=[log], out=tmp_path / name, **settings), silent)
        losses = Bundle.open(tmp_path / name).manifest.training["repetitions"]
        assert "nan" not in json.dumps(losses).lower(), name


def test_titles_are_queries_where_there_are_any(job, store, silent, tmp_path):
    without = with_settings(job, catalog_titles=False)
    plain = train(without, silent).training["data"]["queries"]
    titled = replace(with_settings(job, catalog_titles=True), out=tmp_path / "titled")
    assert train(titled, silent).training["data"]["queries"] >= plain + 100
    ids = tmp_path / "ids.parquet"
    pq.write_table(pq.read_table(store.products).select(["product_id"]), ids)
    untitled = train(replace(titled, catalog=ids, out=tmp_path / "untitled"), silent)
    assert untitled.training["data"]["queries"] == plain


def test_too_many_bad_rows_are_an_error(job, tmp_path, silent):
    queries = [text for i in range(50) for text in (f"word other{i}", "")]
    log = write(tmp_path / "log.parquet", queries, ["p1", "p2"] * 50)
    with pytest.raises(DataError, match="50 of 100 rows cannot be used") as caught:
        train(replace(job, interactions=[log], catalog=None), silent)
    assert "row 2" in str(caught.value)
    manifest = train(
        with_settings(replace(job, interactions=[log], catalog=None), max_skipped=0.5), silent
    )
    assert manifest.num_classes == 1


@pytest.mark.parametrize(
    ("queries", "error", "message"),
    [
        (["!!!", "???"] * 20, InvalidInput, "no n-gram occurs in 3 or more queries"),
        (["red", "red"] * 20, InvalidInput, "no n-gram occurs in 3 or more queries"),
        ([""] * 40, DataError, "no row has a query and a product"),
    ],
)
def test_logs_with_nothing_to_learn(job, tmp_path, silent, queries, error, message):
    log = write(tmp_path / "log.parquet", queries, ["p1", "p2"] * 20)
    with pytest.raises(error, match=message):
        train(
            with_settings(replace(job, interactions=[log], catalog=None), validation_fraction=0.0),
            silent,
        )


def test_rows_of_which_none_is_kept(job, tmp_path, silent):
    log = write(tmp_path / "log.parquet", [" "] * 40, ["p1", "p2"] * 20)
    with pytest.raises(DataError, match="no row has a query and a product"):
        train(with_settings(replace(job, interactions=[log]), max_skipped=1.0), silent)


def test_nothing_held_out(job, silent):
    manifest = train(with_settings(job, validation_fraction=0.0), silent)
    assert manifest.merge["exponent"] == 0
    assert manifest.training["held_out"] == {}
    assert manifest.training["repetitions"][0]["best_epoch"] == 3


def test_the_held_out_part_is_bounded(job, silent):
    data = train(with_settings(job, validation_fraction=0.5, validation_max=20), silent)
    assert data.training["data"]["held_out_queries"] <= 20


# Settings -------------------------------------------------------------------------------------


def test_early_stopping_keeps_the_best_epoch(job, silent):
    manifest = train(with_settings(job, epochs=40, learning_rate=0.3, patience=2), silent)
    for record in manifest.training["repetitions"]:
        assert record["epochs"] == min(40, record["best_epoch"] + 2)
        assert record["epochs"] < 40


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_dropout": 0.5, "hidden_dropout": 0.3, "loss": "softmax", "label_smoothing": 0.1},
        {"quantization": "none"},
        {"quantization": "fp16", "schedule": "cosine"},
        {"quantization": "int8", "gradient_threshold": 0.0},
        {"buckets": None, "word_ngrams": 0, "char_ngrams_min": 3, "char_ngrams_max": 3},
        {"buckets": 500, "weight_power": 0.0, "patience": 0, "batch_size": 10_000},
    ],
)
def test_settings_train(job, silent, changes):
    manifest = train(with_settings(job, **changes), silent)
    Bundle.open(job.out).verify()
    for name, value in changes.items():
        assert manifest.training["settings"][name] == value


def test_divergence_is_named(job, silent, monkeypatch):
    monkeypatch.setattr(repetition, "learning_rate", lambda *_: float("inf"))
    with pytest.raises(ConfigError, match="training of repetition 0 diverged in epoch 1"):
        train(job, silent)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden": 0}, "hidden: "),
        ({"nonsense": 1}, "nonsense: "),
        ({"merge_exponents": (2.0,)}, "merge_exponents"),
        ({"merge_exponents": (LEAST_EXPONENT / 2,)}, "merge_exponents"),
        ({"word_ngrams": 0, "char_ngrams_min": 0, "char_ngrams_max": 0}, "cannot all be 0"),
        ({"affix_lengths": (7, 5)}, "affix_lengths must increase"),
        ({"char_ngrams_min": 6}, "char_ngrams_min and char_ngrams_max must be a range"),
        ({"device": "tpu"}, "device: "),
        ({"title_weight": float("inf")}, "title_weight: Input should be a finite number"),
        ({"merge_exponents": (float("nan"),)}, "merge_exponents"),
        ({"gradient_threshold": 1e-310}, "gradient_threshold must be 0, or"),
    ],
)
def test_settings_that_are_refused(values, message):
    with pytest.raises(InvalidInput, match=message):
        TrainSettings.create(**values)


@pytest.mark.parametrize(
    ("classes", "buckets"), [(1, 10), (100, 100), (2000, 447), (10**6, 10_000), (10**8, 20_000)]
)
def test_default_buckets(classes, buckets):
    assert default_buckets(classes) == buckets


def test_places_where_no_bundle_can_go(job, silent, tmp_path):
    job.out.mkdir()
    with pytest.raises(BundleError, match="exists already"):
        train(job, silent)
    with pytest.raises(InvalidInput, match="out: there is no directory"):
        train(replace(job, out=tmp_path / "no" / "bundle"), silent)
    dangling = tmp_path / "link"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InvalidInput, match=r"out: .* is a link"):
        train(replace(job, out=dangling), silent)
    dangling.unlink()
    with pytest.raises(InvalidInput, match="out: its name is longer than"):
        train(replace(job, out=tmp_path / ("é" * 120)), silent)
    with pytest.raises(InvalidInput, match="interactions: name at least one file"):
        train(replace(job, interactions=[], out=tmp_path / "new"), silent)
    with pytest.raises(InvalidInput, match="repetition: 2 is not from 0 to 1"):
        train_one(replace(job, out=tmp_path / "new"), 2, silent)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_cuda_that_is_not_there_is_an_error(job, silent, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="PyTorch finds no CUDA device"):
        train(with_settings(job, device="cuda"), silent)
