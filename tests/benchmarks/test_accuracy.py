"""The accuracy benchmark, end to end on a toy data set with a system made for the test."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.environments import Environments
from benchmarks.accuracy.report import update_page
from benchmarks.accuracy.systems import load_systems, train_options

WORKER = Path(__file__).with_name("fake_worker.py")
TRAIN = [
    ("red lamp", ["a"]),
    ("red lamp", ["a", "b"]),
    ("blue tent", ["c"]),
    ("tent", ["c"]),
]
#: The last query's product is in no training query: true, and never found.
DEV = [("lamp", ["a"]), ("tent", ["c", "b"]), ("red", ["b"]), ("tent", ["z"])]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    for name, rows in (("train", TRAIN), ("dev", DEV)):
        columns = {"query": [q for q, _ in rows], "product_ids": [p for _, p in rows]}
        pq.write_table(pa.table(columns), source / f"{name}.parquet")
    catalog = {"product_id": list("abcz"), "title": ["A", "B", "C", "Z"]}
    pq.write_table(pa.table(catalog), source / "catalog.parquet")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- accuracy:tib-titles -->\n<!-- /accuracy:tib-titles -->\nafter\n")
    return tmp_path


def run(place: Path, *arguments: str, **options: object) -> int:
    settings = {"trained": str(place / "trained"), **options}
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    (place / "settings.toml").write_text(
        "\n".join(
            f'[{key}]\nname = "{key}"\nabout = "made for a test"\nworker = "{WORKER}"\n'
            f"[{key}.on.tib-titles]\n" + "\n".join(lines) + "\n"
            for key in ("fake", "other")
        )
    )
    return main(
        [
            "tib-titles",
            "--threads=1",
            f"--settings={place / 'settings.toml'}",
            f"--tib={place / 'source'}",
            f"--work={place / 'work'}",
            f"--results={place / 'results'}",
            f"--page={place / 'page.md'}",
            f"--environments={place / 'none'}",
            *arguments,
        ]
    )


def results(place: Path) -> dict[str, dict]:
    content = json.loads((place / "results" / "accuracy-tib-titles.json").read_text())
    return {result["system"]: result for result in content["results"]}


def trainings(place: Path) -> int:
    return len((place / "trained").read_text().splitlines())


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def test_scores_and_costs(place: Path) -> None:
    assert run(place, "--only=fake") == 0
    result = results(place)["fake"]
    metrics = result["metrics"]
    # Hits at 1: lamp and tent; red finds a first, and z cannot be found.
    assert metrics["P@1"] == pytest.approx(2 / 4)
    assert metrics["P@5"] == pytest.approx((1 + 1 + 1) / 5 / 4)
    assert metrics["R@10"] == pytest.approx((1 + 1 / 2 + 1) / 4)
    assert 0 < metrics["PSP@5"] < 1
    assert result["train"]["wall_s"] > 0
    assert result["train"]["peak_rss_mb"] > 5
    assert result["model_mb"] > 0
    assert result["single_p99_ms"] >= result["single_p50_ms"] > 0
    assert result["batch_qps"] > 0
    # Three classes are in train; z is known to scoring alone.
    assert (place / "trained").read_text() == "3 1\n"
    text = (place / "results" / "accuracy-tib-titles.md").read_text()
    assert "| fake | **.500** |" in text
    page = (place / "page.md").read_text()
    assert text in page
    assert page.startswith("before\n")
    assert page.endswith("after\n")


def test_titles_are_training_queries_where_asked(place: Path) -> None:
    assert run(place, "--only=fake", catalog_titles=True) == 0
    # Now z is known by its title, though no query of dev finds it by that.
    assert (place / "trained").read_text() == "4 1\n"
    assert '"Z": {"3": 1}' in next(place.rglob("table.json")).read_text()


def test_resume_keeps_what_is_current(place: Path) -> None:
    assert run(place, "--only=fake") == 0
    assert run(place, "--resume") == 0  # the other system, for the first time
    assert trainings(place) == 2
    assert list(results(place)) == ["fake", "other"]
    assert run(place, "--skip=other") == 0
    assert trainings(place) == 3
    assert list(results(place)) == ["fake", "other"]
    # With other settings, nothing measured before may stand in the table.
    assert run(place, "--resume", "--only=other", beam=5) == 0
    assert trainings(place) == 4
    assert list(results(place)) == ["other"]


def test_the_report_keeps_what_was_measured_elsewhere(place: Path) -> None:
    """As in a fresh clone, which has the report but not what it was made from."""
    assert run(place) == 0
    shutil.rmtree(place / "work")
    assert run(place, "--only=other") == 0
    assert list(results(place)) == ["fake", "other"]
    shutil.rmtree(place / "work")
    assert run(place, "--only=other", beam=5) == 0
    assert list(results(place)) == ["other"]


def test_a_failure_is_a_row_and_an_exit_code(place: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(place, "--only=fake", fail=True) == 1
    assert "RuntimeError: the fake failed" in results(place)["fake"]["failed"]
    assert "fake: no result (exit code 1" in capsys.readouterr().out


def test_a_class_listed_twice_is_refused(place: Path) -> None:
    assert run(place, "--only=fake", repeat=True) == 1
    assert "listed twice" in results(place)["fake"]["failed"]


def test_a_system_that_takes_too_long_is_stopped(place: Path) -> None:
    assert run(place, "--only=fake", "--timeout-minutes=0.0001") == 1
    assert "took longer" in results(place)["fake"]["failed"]


@pytest.mark.parametrize("argument", ["--only=nobody", "--skip=nobody", "--threads=0"])
def test_wrong_arguments(place: Path, argument: str) -> None:
    with pytest.raises(SystemExit) as error:
        run(place, argument)
    assert error.value.code == 2


def test_a_missing_data_set_is_said(place: Path, capsys: pytest.CaptureFixture) -> None:
    (place / "source" / "dev.parquet").unlink()
    assert run(place) == 1
    assert "has no train.parquet, dev.parquet" in capsys.readouterr().err


def test_options_of_mach_train() -> None:
    options = train_options({"min_count": 2, "catalog_titles": True, "share": False})
    assert options == ["--min-count", "2", "--catalog-titles", "--no-share"]


def test_the_settings_that_are_shipped(tmp_path: Path) -> None:
    systems = load_systems()
    assert list(systems) == ["pecos", "pecos-chars", "pecos-ascii", "omikuji", "fasttext", "ours"]
    for system in systems.values():
        assert system.worker.is_file()
        assert system.datasets
        assert set(system.datasets) <= {"tib-titles", "geonames"}
    assert systems["ours"].python(Environments(tmp_path)).exists()


def test_a_page_without_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert not update_page(page, "tib-titles", "text")
    page.write_text("<!-- accuracy:tib-titles -->")
    assert not update_page(page, "tib-titles", "text")
    assert page.read_text() == "<!-- accuracy:tib-titles -->"


@pytest.mark.slow
def test_ours_is_trained_and_scored(place: Path) -> None:
    source = place / "source"
    things = range(100)
    train = [(f"{word} thing{i}", [f"p{i}"]) for i in things for word in ("old", "new", "red")]
    dev = [(f"small thing{i}", [f"p{i}"]) for i in things]
    for name, rows in (("train", train), ("dev", dev)):
        columns = {"query": [q for q, _ in rows], "product_ids": [p for _, p in rows]}
        pq.write_table(pa.table(columns), source / f"{name}.parquet")
    catalog = {"product_id": [f"p{i}" for i in things], "title": [f"thing {i}" for i in things]}
    pq.write_table(pa.table(catalog), source / "catalog.parquet")
    worker = load_systems()["ours"].worker
    (place / "ours.toml").write_text(
        f'[ours]\nname = "ours"\nabout = "tiny"\nworker = "{worker}"\n[ours.on.tib-titles.train]\n'
        "repetitions = 2\nbuckets = 20\nhidden = 16\nepochs = 30\npatience = 0\nmin_count = 1\n"
    )
    assert run(place, f"--settings={place / 'ours.toml'}") == 0
    result = results(place)["ours"]
    assert result["metrics"]["R@100"] == 1
    assert result["metrics"]["R@10"] > 0.3  # by chance .1
    assert result["train"]["peak_rss_mb"] > 50
