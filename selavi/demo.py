"""The product on its own small collection: rendered, labelled, and compared with the truth."""

from pathlib import Path

from selavi import pipeline, progress
from selavi.config import load_config
from selavi.data.demo import CLASSES, render_demo
from selavi.errors import SelaviError
from selavi.evaluation.evaluate import evaluate_run, print_metrics, read_truth

PRESET = "tiny"


def run_demo(out: Path, *, num_clips: int, seed: int, workers: int | None = None) -> None:
    """Render clips into ``out/videos``, label them into ``out/run`` and print the metrics.

    What an earlier demo left in `out` is continued.
    """
    videos, truth = out / "videos", out / "videos" / "labels.csv"
    if not truth.exists():
        with progress.counted("rendering") as on_progress:
            render_demo(videos, num_clips=num_clips, seed=seed, on_progress=on_progress)
    elif (found := len(read_truth(truth))) != num_clips:
        raise SelaviError(f"{out} holds a demo of {found} clips: choose another --out")
    config = load_config(
        PRESET,
        changes={
            "labelling.num_clusters": len(CLASSES),
            "labelling.prior": "zipf",
            "seed": seed,
        },
    )
    run = pipeline.cluster(videos, out / "run", config, resume=True, workers=workers)
    others = pipeline.baseline_labels(run, videos, workers=workers)
    print_metrics(evaluate_run(run, truth, others))
