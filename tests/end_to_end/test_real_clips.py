"""The product on real clips, and the paper's preset at its full size. Minutes; run with -m slow."""

from pathlib import Path

import pytest

from selavi.config import load_config
from selavi.data.demo import render_demo
from selavi.evaluation.evaluate import evaluate_run, print_metrics
from selavi.pipeline import baseline_labels, cluster

COLLECTIONS = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_spoken_digits_above_a_random_encoder(tmp_path: Path) -> None:
    videos = COLLECTIONS / "spokendigits-zipf"
    if not videos.is_dir():
        pytest.skip(f"no real clips at {COLLECTIONS}")
    config = load_config("tiny", changes={"labelling.num_clusters": 10, "labelling.prior": "zipf"})
    run = cluster(videos, tmp_path / "run", config)
    metrics = evaluate_run(run, videos / "labels.csv", baseline_labels(run, videos))
    print()
    print_metrics(metrics)
    assert metrics["joint"]["nmi"] > metrics["random_encoder"]["nmi"]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_paper_preset_at_full_size(tmp_path: Path) -> None:
    """R(2+1)D-18 on 30 x 112 x 112, ResNet-9 on 257 mels, 10 heads, K = 28: one epoch, 32 clips."""
    videos = tmp_path / "videos"
    render_demo(videos, num_clips=32, workers=2)
    config = load_config(
        "paper",
        changes={"labelling.num_clusters": 28},
        overrides=[
            "training.epochs=1",
            "labelling.rounds=1",
            "training.bn_warmup_batches=1",
            "training.batch_size=4",  # 16 clips of this size and their gradients need many GiB
        ],
    )
    run = cluster(videos, tmp_path / "run", config)
    table = run.read_labels()
    assert table.num_rows == 32
    assert sum(name.startswith("head_") for name in table.column_names) == 10
    assert run.read_features()["video"].shape == (32, 512)
