import csv
import json
import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from selavi.data.manifest import SCHEMA, Manifest
from selavi.errors import SelaviError
from selavi.report import RunFolder
from selavi.report.label_table import label_table, write_label_table

CONFIG = {"labelling": {"num_clusters": 10, "num_heads": 3, "prior": "uniform"}, "seed": 0}


@dataclass
class Labels:
    """The fields of `selavi.labelling.final.ClipLabels`."""

    cluster: torch.Tensor
    confidence: torch.Tensor
    agreement: torch.Tensor
    by_modality: dict[str, torch.Tensor]


@dataclass
class Answers:
    """The fields of `selavi.training.inference.Answers` that a run folder keeps."""

    embeddings: dict[str, torch.Tensor]
    present: dict[str, torch.Tensor]


def some_labels(n: int) -> Labels:
    return Labels(
        cluster=torch.arange(n) % 10,
        confidence=torch.linspace(0.1, 1, n),
        agreement=torch.where(torch.arange(n) % 2 == 0, 0.5, torch.nan),
        by_modality={"video": torch.where(torch.arange(n) % 2 == 0, 3, -1)},
    )


def config_with(**changes):
    config = {**CONFIG, "labelling": dict(CONFIG["labelling"])}
    for key, value in changes.items():
        (config if key == "seed" else config["labelling"])[key] = value
    return config


@pytest.fixture
def finished(tmp_path) -> RunFolder:
    run = RunFolder.open(tmp_path / "run", CONFIG)
    run.checkpoint.write_bytes(b"weights")
    run.write_labels(["a", "b"], some_labels(2))
    return run


def refused(match: str):
    return pytest.raises(SelaviError, match=match)


def test_open_makes_the_folder_and_keeps_the_settings(tmp_path):
    run = RunFolder.open(tmp_path / "deep" / "run", CONFIG)
    assert run.read_config() == CONFIG
    assert os.listdir(run.path) == ["config.yaml"]
    assert not run.holds_run


def test_making_the_object_touches_nothing(tmp_path):
    RunFolder(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["file/run", "file"])
def test_a_path_that_is_no_folder_is_told_in_one_line(tmp_path, name):
    (tmp_path / "file").write_text("mine")
    with refused(f"cannot write to .*{name}.*choose another --out") as caught:
        RunFolder.open(tmp_path / name, CONFIG)
    assert "\n" not in str(caught.value)


def test_a_read_only_folder_is_told_in_one_line():
    # /proc refuses new files to everyone, the superuser too.
    with refused("cannot write to /proc.*choose another --out"):
        RunFolder.open("/proc/run", CONFIG)


@pytest.mark.parametrize("resume", [False, True])
def test_another_k_is_refused_and_nothing_is_lost(finished, resume):
    before = {f: (finished.path / f).read_bytes() for f in os.listdir(finished.path)}
    with refused(r"num_clusters 10, you asked for 16: choose another --out or pass --clusters 10$"):
        RunFolder.open(finished.path, config_with(num_clusters=16), resume=resume)
    assert before == {f: (finished.path / f).read_bytes() for f in os.listdir(finished.path)}


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"num_heads": 5}, "--heads 3"),
        ({"prior": "zipf"}, "--prior uniform"),
        ({"seed": 1}, "--seed 0"),
        ({"lam": 5.0}, "--set labelling.lam="),
    ],
)
def test_any_other_setting_is_refused(finished, changes, remedy):
    with refused(remedy):
        RunFolder.open(finished.path, config_with(**changes), resume=True)


def test_an_earlier_run_is_continued_only_on_request(finished):
    with refused("already holds a run: pass --resume"):
        RunFolder.open(finished.path, CONFIG)
    with refused("holds a run: choose another --out"):
        RunFolder.open(finished.path, None)
    assert RunFolder.open(finished.path, CONFIG, resume=True).checkpoint.read_bytes() == b"weights"


def test_a_run_that_never_began_does_not_bind(tmp_path):
    RunFolder.open(tmp_path, CONFIG)
    run = RunFolder.open(tmp_path, config_with(num_clusters=16))
    assert run.read_config()["labelling"]["num_clusters"] == 16


@pytest.mark.parametrize("name", ["labels.csv", "metrics.json", "checkpoint.pt", "config.yaml"])
def test_somebody_elses_files_are_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text("path: label\n")
    with refused("choose another --out"):
        RunFolder.open(tmp_path, CONFIG)
    assert (tmp_path / name).read_text() == "path: label\n"


def test_labels_of_assign_may_be_written_again_but_become_no_run(tmp_path):
    for _ in range(2):
        target = RunFolder.open(tmp_path, None)
        target.write_manifest(manifest_of("a"))
        target.write_labels(["a"], some_labels(1))
    with refused("labels of `selavi assign`"):
        RunFolder.open(tmp_path, CONFIG)


def manifest_of(*paths: str) -> Manifest:
    blank = {field.name: pa.nulls(len(paths), field.type) for field in SCHEMA}
    columns = blank | {"path": pa.array(paths), "reason": pa.array([""] * len(paths))}
    return Manifest(pa.table(columns, schema=SCHEMA))


def test_a_run_is_continued_with_its_own_clips_only(finished):
    finished.write_manifest(manifest_of("a", "b"))
    finished.write_manifest(manifest_of("a", "b"), resume=True)
    with refused("began with 2 clips and there are 3 now, 'c'"):
        finished.write_manifest(manifest_of("a", "b", "c"), resume=True)
    assert len(Manifest.load(finished.manifest)) == 2


def test_label_table_columns(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    heads = torch.arange(8).view(2, 4)
    run.write_labels(["a.mp4", "b/c.mp4", "d", "e"], some_labels(4), heads)
    table = run.read_labels()
    assert table.column_names == [
        "path", "cluster", "confidence", "agreement", "cluster_video", "cluster_audio",
        "head_0", "head_1",
    ]  # fmt: skip
    assert table["cluster"].to_pylist() == [0, 1, 2, 3]
    assert table["agreement"].to_pylist() == [0.5, None, 0.5, None]
    assert table["cluster_video"].to_pylist() == [3, None, 3, None]
    assert table["cluster_audio"].null_count == 4
    assert table["head_1"].to_pylist() == [4, 5, 6, 7]
    with run.labels_csv.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == table.column_names
    assert [row["path"] for row in rows] == ["a.mp4", "b/c.mp4", "d", "e"]
    assert [row["cluster_video"] for row in rows] == ["3", "", "3", ""]
    assert [float(row["confidence"]) for row in rows] == pytest.approx(
        table["confidence"].to_pylist()
    )
    with pytest.raises(ValueError, match="3 paths for 4 labels"):
        label_table(["a", "b", "c"], some_labels(4))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))))
def test_odd_names_come_back_from_both_files(tmp_path_factory, names):
    names = [*names, "=cmd()", "-dash.mp4", 'quote".mp4', "comma,.mp4", "new\nline\r.mp4", "ü 映像"]
    folder = tmp_path_factory.mktemp("odd")
    run = RunFolder(folder)
    write_label_table(
        label_table(names, some_labels(len(names))), run.labels_parquet, run.labels_csv
    )
    assert run.read_labels()["path"].to_pylist() == names
    with run.labels_csv.open(newline="", encoding="utf-8") as file:
        read = [row["path"] for row in csv.DictReader(file)]
    # The CSV names the same file, and no cell is a formula.
    assert [path.removeprefix("./") for path in read] == [n.removeprefix("./") for n in names]
    assert not any(path.startswith(("=", "+", "-", "@", "\t", "\r")) for path in read)


def test_a_name_that_is_no_unicode_is_told_in_one_line():
    with refused("not valid Unicode: rename the file"):
        label_table([os.fsdecode(b"\xff.mp4")], some_labels(1))


def test_a_failed_write_keeps_the_former_labels(finished, monkeypatch):
    before = finished.labels_parquet.read_bytes(), finished.labels_csv.read_bytes()
    monkeypatch.setattr(
        "selavi.report.label_table.parquet.write_table",
        lambda table, path: path.write_bytes(b"PAR1 half") and (_ for _ in ()).throw(OSError(28)),
    )
    with refused("cannot write .*labels.parquet"):
        finished.write_labels(["x"], some_labels(1))
    assert before == (finished.labels_parquet.read_bytes(), finished.labels_csv.read_bytes())
    assert not [name for name in os.listdir(finished.path) if name.endswith(".tmp")]


def test_metrics_are_merged_by_section(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    run.write_metrics("training", {"clips": 7, "loss": [np.float32(0.5), float("nan")]})
    run.write_metrics("evaluation", {"nmi": 0.1})
    run.write_metrics("evaluation", {"nmi": torch.tensor(0.5), "sizes": torch.tensor([1, 2])})
    expected = {
        "training": {"clips": 7, "loss": [0.5, None]},
        "evaluation": {"nmi": 0.5, "sizes": [1, 2]},
    }
    assert run.read_metrics() == expected == json.loads(run.metrics.read_text())


def test_features_come_back_with_nan_for_what_is_absent(tmp_path):
    run = RunFolder.open(tmp_path, CONFIG)
    video, audio = torch.randn(3, 4, dtype=torch.float64), torch.randn(4, 3).T
    present = {
        "video": torch.tensor([True, True, True]),
        "audio": torch.tensor([True, False, True]),
    }
    run.write_features(Answers({"video": video, "audio": audio}, present))
    read = run.read_features()
    torch.testing.assert_close(read["video"], video.float())
    assert read["audio"].isnan().all(1).tolist() == [False, True, False]
    assert torch.equal(read["audio"][[0, 2]], audio[[0, 2]])


def test_what_is_missing_or_damaged_is_told_in_one_line(tmp_path):
    run = RunFolder(tmp_path)
    readers = {
        run.config: run.read_config,
        run.labels_parquet: run.read_labels,
        run.features: run.read_features,
        run.metrics: run.read_metrics,
    }
    for file, read in readers.items():
        with refused(f"has no {file.name}.*finished `selavi cluster`"):
            read()
        file.write_text("{[\nnot \x01 this")
        with refused(file.name) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_config_is_read_without_running_code(tmp_path):
    run = RunFolder(tmp_path)
    run.config.write_text(yaml.dump(CONFIG) + "evil: !!python/object/apply:os.getcwd []\n")
    with refused("config.yaml is not valid YAML"):
        run.read_config()
