"""`selavi cluster`, `assign` and `evaluate` on clips that the test renders."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from selavi.cli import main
from selavi.data.demo import render_demo
from selavi.report.run_folder import RunFolder

FAST = [
    *("data.num_frames=4", "data.fps=8", "data.frame_size=24", "data.decode_size=28"),
    *("data.audio_seconds=0.5", "data.cache_seconds=0.6", "data.fit_seconds=0"),
    "data.n_mels=32",
    *("model.video_widths=[8,16]", "model.audio_widths=[8,16]", "model.hidden=32"),
    *("labelling.rounds=3", "training.epochs=2", "training.batch_size=16"),
    "training.min_steps=0",
]


def selavi(*arguments: object, settings: tuple[str, ...] = ()) -> None:
    """Run the command line in this process; a mistake exits with SystemExit."""
    given = [str(a) for a in arguments]
    for setting in settings:
        given += ["--set", setting]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["selavi", *given])
        try:
            main()
        except SystemExit as exit_:
            if exit_.code:
                raise


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 good clips in nested folders, one without sound, one without picture, and junk."""
    import av

    folder = tmp_path_factory.mktemp("videos")
    render_demo(folder, num_clips=36, seed=1, workers=2)
    nested = folder / "more" / "and more"
    nested.mkdir(parents=True)
    clips = sorted((folder / "clips").glob("*.mp4"))
    shutil.move(clips[0], nested / "-dash and ünicode, comma.mp4")
    for clip, kind in ((clips[1], "video"), (clips[2], "audio")):
        keep_stream(av, clip, folder / f"only {kind}.mp4", kind)
    (folder / "empty.mp4").touch()
    (folder / "broken.mp4").write_bytes(clips[3].read_bytes()[:700])
    (folder / "notes.txt").write_text("no video")
    return folder


def keep_stream(av, source: Path, target: Path, kind: str) -> None:
    with av.open(str(source)) as given, av.open(str(target), "w") as kept:
        stream = getattr(given.streams, kind)[0]
        copy = kept.add_stream_from_template(stream)
        for packet in given.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                kept.mux(packet)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELAVI_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("runs") / "run"
    options = ("-k", 5, "--heads", 3, "--prior", "zipf", "--preset", "tiny", "--workers", 2)
    selavi("cluster", videos, "--out", out, *options, settings=tuple(FAST))
    return RunFolder(out)


def test_every_clip_is_labelled_and_every_other_file_explained(run: RunFolder) -> None:
    rows = list(csv.DictReader(run.labels_csv.open(newline="", encoding="utf-8")))
    assert len(rows) == 38
    by_path = {row["path"]: row for row in rows}
    assert by_path["only video.mp4"]["cluster_audio"] == ""
    assert by_path["only audio.mp4"]["cluster_video"] == ""
    assert by_path["only audio.mp4"]["agreement"] == ""
    assert "more/and more/-dash and ünicode, comma.mp4" in by_path
    for row in rows:
        assert 0 <= int(row["cluster"]) < 5
        assert 0.2 - 1e-5 <= float(row["confidence"]) <= 1
    manifest = {r["path"]: r["reason"] for r in pq.read_table(run.manifest).to_pylist()}
    assert manifest["empty.mp4"] == "empty_file"
    assert manifest["broken.mp4"] == "corrupt"
    assert manifest["notes.txt"] == "not_media"


def test_the_run_folder_is_complete(run: RunFolder) -> None:
    assert pq.read_table(run.labels_parquet).num_rows == 38
    features = run.read_features()
    assert {name: len(rows) for name, rows in features.items()} == {"video": 38, "audio": 38}
    training = json.loads(run.metrics.read_text())["training"]
    assert training["clips"] == 38 and sum(training["cluster_sizes"]) == 38
    assert list(run.tensorboard.glob("events.*"))


def test_assigning_the_same_clips_gives_the_same_labels(
    run: RunFolder, videos: Path, tmp_path: Path
) -> None:
    selavi("assign", run.path, videos, "--out", tmp_path / "assigned")
    again = RunFolder(tmp_path / "assigned").read_labels()
    table = run.read_labels()
    for column in ("path", "cluster", "cluster_video", "cluster_audio"):
        assert again[column].equals(table[column]), column


def test_assign_labels_clips_without_sound(run: RunFolder, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "silent").mkdir()
    shutil.copy(videos / "only video.mp4", tmp_path / "silent")
    selavi("assign", run.path, tmp_path / "silent", "--out", tmp_path / "out")
    table = RunFolder(tmp_path / "out").read_labels()
    assert table["cluster"].null_count == 0 and table["cluster_audio"].null_count == 1


def test_evaluate_prints_and_writes(run: RunFolder, videos: Path, capsys) -> None:
    selavi("evaluate", run.path, "--labels", videos / "labels.csv", "--videos", videos)
    printed = capsys.readouterr().out
    for word in ("NMI", "AMI", "ARI", "Acc", "<H>", "<p_max>", "joint", "random_encoder"):
        assert word in printed
    written = json.loads(run.metrics.read_text())["evaluation"]
    assert set(written["joint"]) >= {"nmi", "ami", "ari", "accuracy"}


def test_features_of_a_run_can_be_labelled(run: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "heads"
    settings = ("training.epochs=2", "labelling.rounds=2", "model.hidden=16")
    selavi("label", run.features, "-k", 4, "--heads", 2, "-o", out, settings=settings)
    assert RunFolder(out).read_labels().num_rows == 38


@pytest.mark.parametrize(
    "switch",
    [
        "labelling.alignment=false",
        "labelling.second_view=false",
        "labelling.num_heads=1",
        "labelling.prior=uniform",
        "labelling.shared_fraction=0",
        "training.precision=float32",
        "data.cache_seconds=0",
    ],
)
def test_each_part_can_be_switched_off(switch: str, videos: Path, tmp_path: Path) -> None:
    selavi("cluster", videos, "-k", 3, "-o", tmp_path / "run", "--preset", "tiny",
           settings=(*FAST, "training.epochs=1", "labelling.rounds=1", switch))  # fmt: skip
    assert RunFolder(tmp_path / "run").read_labels().num_rows == 38


def bad(capsys, *arguments: object) -> str:
    with pytest.raises(SystemExit) as stopped:
        selavi(*arguments)
    printed = capsys.readouterr().err
    assert stopped.value.code == 2
    assert "Traceback" not in printed
    return printed.strip().splitlines()[-1]


def test_mistakes_are_told_in_one_line(run, videos, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    tiny = ("--preset", "tiny")
    (tmp_path / "nothing").mkdir()
    assert "is 1: give 2 or more" in bad(capsys, "cluster", videos, "-k", 1, "-o", out, *tiny)
    assert "39 and there are 38" in bad(capsys, "cluster", videos, "-k", 39, "-o", out, *tiny)
    assert "no files" in bad(capsys, "cluster", tmp_path / "nothing", "-k", 3, "-o", out, *tiny)
    assert "no prior" in bad(capsys, "cluster", videos, "-k", 3, "-o", out, "--prior", "flat")
    assert "is 0: give 1" in bad(capsys, "cluster", videos, "-k", 3, "-o", out, "--heads", 0)
    assert "--clusters" in bad(capsys, "cluster", videos, "-k", 9, "-o", run.path, *tiny)
    assert "--resume" in bad(capsys, "cluster", videos, "-k", 5, "-o", run.path,
                             "--preset", run.config)  # fmt: skip
    assert "cannot write" in bad(capsys, "cluster", videos, "-k", 3, "-o", "/proc/run", *tiny)
    assert "not finished" in bad(capsys, "assign", unfinished(tmp_path), videos, "-o", out)
    assert "cannot read" in bad(capsys, "label", tmp_path / "none.npz", "-k", 3, "-o", out)
    for setting, value in (("rounds", 0), ("memory", 1.0), ("lam", 0.0), ("views", 0)):
        change = ("--set", f"labelling.{setting}={value}")
        told = bad(capsys, "cluster", videos, "-k", 3, "-o", out, *tiny, *change)
        assert f"labelling.{setting} is {value}: give" in told
    assert "selavi label" in bad(
        capsys, "cluster", videos, "-k", 3, "-o", out, "--preset", "features"
    )
    assert "needs columns" in bad(capsys, "evaluate", run.path, "--labels", videos / "notes.txt")


def unfinished(tmp_path: Path) -> Path:
    folder = tmp_path / "unfinished"
    folder.mkdir()
    torch.save({"format": 2}, folder / "checkpoint.pt")
    return folder


def test_a_silent_track_and_a_rare_modality_do_no_harm(tmp_path: Path) -> None:
    """Sound that is there but all zeros, in one clip of sixteen more a real sound."""
    import numpy as np

    from selavi.data.demo import draw_picture, make_sound, write_clip

    rng = np.random.default_rng(0)
    for i in range(16):
        sound = make_sound(i % 5, rng) if i == 0 else np.zeros(19_200, np.float32)
        write_clip(tmp_path / f"{i:02d}.mp4", draw_picture(i % 5, rng), sound, fps=15)
        if i > 12:
            write_clip(tmp_path / f"{i:02d}.mp4", draw_picture(i % 5, rng), None, fps=15)
    out = tmp_path.parent / "silent run"
    selavi("cluster", tmp_path, "-k", 3, "-o", out, "--preset", "tiny", settings=tuple(FAST))
    labels = RunFolder(out).read_labels()
    assert labels.num_rows == 16 and labels["cluster"].null_count == 0
