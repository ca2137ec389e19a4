"""The bundle on disk: complete or absent, and refused when it is not what it says."""

import json
import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mach.bundle import (
    BUCKETS_FILE,
    CATALOG_FILE,
    FEATURES_FILE,
    MANIFEST_FILE,
    Bundle,
    Catalog,
    Manifest,
    files_for,
    parse_manifest,
    repetition_file,
    seal,
    write_catalog,
    write_features,
)
from mach.errors import BundleError, DataError, InvalidInput
from mach.features import FeatureSettings, SlotCounter
from mach.filters import parse_filter
from mach.hashing import UniversalHash
from mach.merge import BucketTable, MergeRule

K, B, R = 30, 8, 3
IDS = [f"p{i:02d}" for i in range(K)]


def stage(directory, models=(b"zero", b"one", b"two")):
    """A staging directory whose models are mere bytes, and the manifest's fields."""
    directory.mkdir(parents=True)
    counter = SlotCounter(FeatureSettings())
    counter.add(["red drill", "blue drill"])
    featurizer = counter.featurizer()
    hashes = UniversalHash.draw(K, B, R, seed=1)
    write_features(directory / FEATURES_FILE, featurizer)
    table = pa.table({"product_id": IDS[::-1], "title": [f"title {i}" for i in IDS[::-1]]})
    write_catalog(directory / CATALOG_FILE, table)
    BucketTable.from_hash(hashes, K).save(directory / BUCKETS_FILE)
    for repetition, model in enumerate(models):
        (directory / repetition_file(repetition)).write_bytes(model)
    return {
        "num_classes": K,
        "num_buckets": B,
        "num_repetitions": R,
        "num_features": featurizer.num_features,
        "assignment": "hash",
        "hash": hashes.to_manifest(),
        "features": FeatureSettings(),
        "merge": MergeRule(0.5).to_manifest(),
        "training": {"seconds": 1.5},
        "libraries": {"numpy": "2"},
    }


@pytest.fixture
def bundle_dir(tmp_path):
    fields = stage(tmp_path / "staging")
    seal(tmp_path / "staging", tmp_path / "bundle", **fields)
    return tmp_path / "bundle"


def edit(directory, change):
    path = directory / MANIFEST_FILE
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def test_what_was_sealed_is_read_back(bundle_dir):
    bundle = Bundle.open(bundle_dir)
    bundle.verify()
    assert bundle.read_model(1) == b"one"
    assert bundle.model_size(2) == 3
    assert bundle.featurizer.num_features == bundle.manifest.num_features
    assert bundle.merge_rule == MergeRule(0.5)
    assert (bundle.hash.table() == UniversalHash.draw(K, B, R, seed=1).table()).all()
    assert bundle.buckets.num_classes == K
    assert bundle.catalog.product_ids([0, 29]) == ["p00", "p29"]
    assert bundle.catalog.rows([3]) == [{"title": "title p03"}]
    assert not (bundle_dir.parent / "staging").exists()


def test_the_version_is_the_content_not_the_circumstances(tmp_path):
    versions = []
    for name, training in (("a", {"seconds": 1}), ("b", {"seconds": 2})):
        fields = stage(tmp_path / f"{name}.partial") | {"training": training}
        versions.append(seal(tmp_path / f"{name}.partial", tmp_path / name, **fields).version)
    assert versions[0] == versions[1]
    fields = stage(tmp_path / "c.partial", models=(b"zero", b"one", b"TWO"))
    assert seal(tmp_path / "c.partial", tmp_path / "c", **fields).version != versions[0]
    fields = stage(tmp_path / "d.partial") | {"merge": MergeRule(0.0).to_manifest()}
    assert seal(tmp_path / "d.partial", tmp_path / "d", **fields).version != versions[0]


def test_a_bundle_is_never_overwritten(bundle_dir, tmp_path):
    fields = stage(tmp_path / "again")
    with pytest.raises(BundleError, match="exists already"):
        seal(tmp_path / "again", bundle_dir, **fields)
    Bundle.open(bundle_dir).verify()


def test_an_incomplete_staging_directory_is_not_sealed(tmp_path):
    fields = stage(tmp_path / "staging")
    (tmp_path / "staging" / repetition_file(1)).unlink()
    with pytest.raises(BundleError, match=r"repetition-001\.onnx"):
        seal(tmp_path / "staging", tmp_path / "bundle", **fields)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", [CATALOG_FILE, FEATURES_FILE, BUCKETS_FILE, repetition_file(0)])
def test_every_file_is_checked(bundle_dir, name):
    path = bundle_dir / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(BundleError, match=name):
        Bundle.open(bundle_dir)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match=name):
        Bundle.open(bundle_dir).verify()
    path.unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.open(bundle_dir)


def test_a_model_changed_after_opening_is_refused(bundle_dir):
    bundle = Bundle.open(bundle_dir)
    (bundle_dir / repetition_file(0)).write_bytes(b"ZERO")
    with pytest.raises(BundleError, match="corrupt"):
        bundle.read_model(0)


@pytest.mark.parametrize("repetition", [-1, R, 10**9])
def test_a_repetition_the_bundle_has_not(bundle_dir, repetition):
    with pytest.raises(InvalidInput, match="repetition"):
        Bundle.open(bundle_dir).read_model(repetition)


def test_no_bundle_there(tmp_path):
    with pytest.raises(BundleError, match="File name too long"):
        Bundle.open("x" * 5000)
    with pytest.raises(BundleError, match="no such directory"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 1}', '{"format": 2}', "\x00", "[" * 10_000]
)
def test_damaged_manifests(bundle_dir, text):
    (bundle_dir / MANIFEST_FILE).write_text(text)
    with pytest.raises(BundleError):
        Bundle.open(bundle_dir)


def test_another_format_is_named(bundle_dir):
    edit(bundle_dir, lambda fields: fields.update(format=99))
    with pytest.raises(BundleError, match="format 99"):
        Bundle.open(bundle_dir)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.update(num_buckets=9),
        lambda fields: fields["files"][CATALOG_FILE].update(sha256="0" * 64),
        lambda fields: fields["merge"].update(exponent=1.0),
        lambda fields: fields["hash"]["coefficients"].reverse(),
        lambda fields: fields["features"].update(word_ngrams=1),
    ],
)
def test_an_edited_manifest_has_another_version(bundle_dir, change):
    edit(bundle_dir, change)
    with pytest.raises(BundleError, match="version"):
        Bundle.open(bundle_dir)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/b", "..", ".hidden", "a\\b", ""])
def test_files_outside_the_bundle_are_refused(bundle_dir, name):
    entry = {"sha256": "0" * 64, "size": 0}
    edit(bundle_dir, lambda fields: fields["files"].update({name: entry}))
    with pytest.raises(BundleError, match="plain file name"):
        Bundle.open(bundle_dir)


def test_the_manifest_survives_json(bundle_dir):
    manifest = Bundle.open(bundle_dir).manifest
    assert Manifest.model_validate_json(manifest.to_json()) == manifest


ids = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), unique=True
)


@given(ids.filter(len))
def test_catalog_finds_every_id_and_no_other(tmp_path_factory, ids):
    path = tmp_path_factory.mktemp("catalog") / CATALOG_FILE
    write_catalog(path, pa.table({"product_id": ids, "n": range(len(ids))}))
    catalog = Catalog.open(path)
    assert catalog.product_ids(range(len(ids))) == sorted(ids, key=str.encode)
    for number, product_id in enumerate(ids):
        found = catalog.class_of(product_id)
        assert catalog.rows([found]) == [{"n": number}]
        assert catalog.class_of(product_id + "\x00") in (
            None,
            *(
                i
                for i, other in enumerate(sorted(ids, key=str.encode))
                if other == product_id + "\0"
            ),
        )


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "b", "a"], "'a' occurs more than once"),
        (["a", ""], "empty"),
        (["a", None], "missing"),
    ],
)
def test_catalogs_that_cannot_be(tmp_path, ids, message):
    with pytest.raises(DataError, match=message):
        write_catalog(tmp_path / CATALOG_FILE, pa.table({"product_id": ids}))


def test_products_without_attributes_have_none(tmp_path):
    write_catalog(tmp_path / CATALOG_FILE, pa.table({"product_id": ["b", "a"]}))
    assert Catalog.open(tmp_path / CATALOG_FILE).rows(np.array([1, 0, 1])) == [{}, {}, {}]


def test_columns_of_much_text_are_kept_as_such(tmp_path, monkeypatch):
    monkeypatch.setattr("mach.bundle.catalog._MOST_TEXT_BYTES", 10)
    columns = {"product_id": ["b", "a"], "title": ["x" * 20, None], "raw": [b"y" * 20, b"z"]}
    write_catalog(tmp_path / CATALOG_FILE, pa.table(columns))
    catalog = Catalog.open(tmp_path / CATALOG_FILE)
    assert catalog.table.schema.field("title").type == pa.large_string()
    assert catalog.rows([0, 1]) == [{"raw": b"z"}, {"title": "x" * 20, "raw": b"y" * 20}]
    wanted = parse_filter(f'title = "{"x" * 20}"').evaluate(catalog.table)
    assert np.asarray(wanted).tolist() == [False, True]


def test_a_column_that_cannot_be_sorted_is_named_in_a_sentence(tmp_path):
    views = pa.array([["a"], ["b"]], pa.list_(pa.string_view()))
    with pytest.raises(DataError, match="cannot be"):
        write_catalog(tmp_path / CATALOG_FILE, pa.table({"product_id": ["b", "a"], "v": views}))


def test_missing_attributes_are_left_out(tmp_path):
    table = pa.table({"product_id": ["b", "a"], "title": ["B", None], "price": [1.5, None]})
    write_catalog(tmp_path / CATALOG_FILE, table)
    assert Catalog.open(tmp_path / CATALOG_FILE).rows([0, 1]) == [{}, {"title": "B", "price": 1.5}]


def test_what_python_has_no_value_for_is_text(tmp_path):
    kinds = {
        "nanos": (1_700_000_000_000_000_001, pa.timestamp("ns"), "2023-11-14T22:13:20.000000001"),
        "late": (3 * 10**17, pa.timestamp("us"), "11476-08-15T05:20:00.000000"),
        "place": (0, pa.timestamp("s", "Foo/Bar"), "1970-01-01T00:00:00Z"),
        "day": (10**7, pa.date32(), "29349-01-26"),
        "wait": (1_500_000_001, pa.duration("ns"), "1500000001"),
    }
    columns = {name: pa.array([value, None], kind) for name, (value, kind, _) in kinds.items()}
    columns["parts"] = pa.StructArray.from_arrays([columns["nanos"]], ["nanos"])
    columns["listed"] = pa.array([[1, None], None], pa.list_(pa.timestamp("ns")))
    table = pa.table({"product_id": ["a", "b"], "price": [1.5, 2.0]} | columns)
    write_catalog(tmp_path / CATALOG_FILE, table)
    rows = Catalog.open(tmp_path / CATALOG_FILE).rows([0, 1])
    assert rows[0].pop("parts") == {"nanos": kinds["nanos"][2]}
    assert rows[0].pop("listed") == ["1970-01-01T00:00:00.000000001", None]
    assert rows[0] == {"price": 1.5} | {name: text for name, (_, _, text) in kinds.items()}
    assert rows[1]["price"] == 2.0
    assert not rows[1].keys() & kinds.keys()


def test_values_nested_too_deep_are_refused(tmp_path):
    deep = 1
    for _ in range(200):
        deep = [deep]
    with pytest.raises(DataError, match="cannot be written"):
        write_catalog(tmp_path / CATALOG_FILE, pa.table({"product_id": ["a"], "deep": [deep]}))


def test_a_manifest_of_an_earlier_release_is_written_as_it_was(bundle_dir):
    fields = json.loads((bundle_dir / MANIFEST_FILE).read_text())
    del fields["features"]["transliterate"]
    fields["version"] = Manifest._version_of(fields)
    older = parse_manifest(json.dumps(fields).encode(), "here")
    assert older.features.transliterate is False
    assert parse_manifest(older.to_json().encode(), "there") == older


@pytest.mark.parametrize("name", ["price", "product_id"])
def test_a_catalog_with_a_column_twice_is_refused(tmp_path, name):
    table = pa.table([["a"], ["A"], [1], [2]], ["product_id", "title", name, name])
    with pa.ipc.new_file(tmp_path / CATALOG_FILE, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(BundleError, match=f"has column '{name}' more than once"):
        Catalog.open(tmp_path / CATALOG_FILE)


def test_a_bundle_may_be_opened_for_some_of_its_files(bundle_dir):
    for name in ("repetition-002.onnx", BUCKETS_FILE, CATALOG_FILE):
        (bundle_dir / name).unlink()
    with pytest.raises(BundleError, match="is missing"):
        Bundle.open(bundle_dir)
    for held in ([0], [0, 1]):
        bundle = Bundle.open(bundle_dir, files=lambda m, held=held: files_for(m, "shard", held))
        bundle.verify()
        assert bundle.read_model(0)
    with pytest.raises(BundleError, match=r"repetition-002\.onnx is missing"):
        Bundle.open(bundle_dir, files=lambda m: files_for(m, "shard"))
    with pytest.raises(BundleError, match=r"is missing"):
        Bundle.open(bundle_dir, files=lambda m: files_for(m, "aggregator"))
    with pytest.raises(BundleError, match=r"buckets.bin cannot be read"):
        bundle.verify(["buckets.bin"])


@pytest.mark.parametrize("name", [MANIFEST_FILE, CATALOG_FILE, repetition_file(1)])
def test_a_file_that_is_a_link_is_refused_even_to_the_right_bytes(bundle_dir, tmp_path, name):
    (bundle_dir / name).rename(tmp_path / "elsewhere")
    (bundle_dir / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=f"{name} is a link"):
        Bundle.open(bundle_dir)


def test_the_directory_itself_may_be_a_link(bundle_dir, tmp_path):
    (tmp_path / "current").symlink_to(bundle_dir)
    Bundle.open(tmp_path / "current").verify()


@pytest.mark.parametrize("name", [MANIFEST_FILE, CATALOG_FILE])
def test_a_pipe_is_not_read(bundle_dir, name):
    (bundle_dir / name).unlink()
    os.mkfifo(bundle_dir / name)
    with pytest.raises(BundleError, match=f"{name} is no file"):
        Bundle.open(bundle_dir)


def test_a_manifest_without_end_is_not_read(bundle_dir):
    with (bundle_dir / MANIFEST_FILE).open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(BundleError, match="too long to be a manifest"):
        Bundle.open(bundle_dir)
