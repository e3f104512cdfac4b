"""The command line: parses, calls `selavi.pipeline`, and tells mistakes in one line."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import selavi
from selavi.errors import SelaviError

app = typer.Typer(
    help="Cluster labels for unlabelled videos, from their pictures and their sound.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Heads = Annotated[int | None, typer.Option(help="Independent labellings learned side by side.")]
Clusters = Annotated[int, typer.Option("--clusters", "-k", help="Number of clusters K.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Run folder to write.")]
Prior = Annotated[
    str | None,
    typer.Option(help="Cluster sizes: uniform, gaussian, zipf or a FILE of K numbers."),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="tiny, paper or a YAML file such as a run's config.yaml. Default: by the machine."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting: key=value, e.g. labelling.alignment=false."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")]
Seed = Annotated[
    int | None, typer.Option(min=0, max=2**31 - 1, help="Seed of all randomness. Default: 0.")
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes that read files. Default: one a CPU.")
]


@app.command()
def cluster(
    videos: Annotated[Path, typer.Argument(help="Folder of videos, nested as you like.")],
    clusters: Clusters,
    out: Out,
    heads: Heads = None,
    prior: Prior = None,
    preset: Preset = None,
    resume: Resume = False,
    seed: Seed = None,
    workers: Workers = None,
    settings: Settings = None,
) -> None:
    """Label a folder of videos from scratch."""
    from selavi import pipeline

    config = _config(preset, clusters, heads, prior, seed, settings, _resumed(out, resume))
    run = pipeline.cluster(videos, out, config, resume=resume, workers=workers)
    _say_written(run.path)


@app.command()
def label(
    features: Annotated[
        Path, typer.Argument(help="npz or safetensors with arrays video and/or audio, N x D.")
    ],
    clusters: Clusters,
    out: Out,
    heads: Heads = None,
    prior: Prior = None,
    resume: Resume = False,
    seed: Seed = None,
    settings: Settings = None,
) -> None:
    """Label clips by features that another encoder made: trains heads only."""
    from selavi import pipeline

    preset = _resumed(out, resume) or "features"
    config = _config(preset, clusters, heads, prior, seed, settings, None)
    run = pipeline.label_features(features, out, config, resume=resume)
    _say_written(run.path)


@app.command()
def assign(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    videos: Annotated[Path, typer.Argument(help="Folder of videos to label.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write. Default: RUN/assigned.")
    ] = None,
    workers: Workers = None,
) -> None:
    """Label new videos with a finished run, without training."""
    from selavi import pipeline
    from selavi.report.run_folder import RunFolder

    target = out or run / "assigned"
    pipeline.assign(RunFolder(run), videos, target, workers=workers)
    _say_written(target)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    labels: Annotated[Path, typer.Option(help="CSV with columns path and label.")],
    videos: Annotated[
        Path | None,
        typer.Option(help="The clips: also evaluates k-means on pixels, sound, a random encoder."),
    ] = None,
    workers: Workers = None,
) -> None:
    """Compare a run's labels with known classes: NMI, AMI, ARI, accuracy, <H>, <p_max>."""
    from selavi import pipeline
    from selavi.evaluation.evaluate import evaluate_run, print_metrics
    from selavi.report.run_folder import RunFolder

    folder = RunFolder(run)
    others = pipeline.baseline_labels(folder, videos, workers=workers) if videos else None
    print_metrics(evaluate_run(folder, labels, others))


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write.")] = Path(
        "selavi-demo"
    ),
    clips: Annotated[int, typer.Option(help="Number of clips to render.")] = 360,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of all randomness.")] = 0,
    workers: Workers = None,
) -> None:
    """Render a small audio-visual collection, label it, and compare with its known classes."""
    from selavi.demo import run_demo

    run_demo(out, num_clips=clips, seed=seed, workers=workers)


@app.command()
def doctor() -> None:
    """Say what is built and usable on this machine, what "auto" takes, and why not the others."""
    from selavi.doctor import report

    for line in report():
        print(line)


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 a mistake in the input, 75 interrupted and resumable.

    Under torchrun these are the codes of each process; torchrun's own is 1 for any of them.
    """
    from selavi import distributed
    from selavi.training.interruption import EXIT_INTERRUPTED, Interrupted, interruptible

    code: int | None = None
    try:
        with interruptible():
            app()
    except SelaviError as error:
        message, code = f"error: {error}", 2
    except Interrupted:
        message, code = "interrupted; --resume continues the run", EXIT_INTERRUPTED
    if code is not None and distributed.is_main():
        print(f"selavi: {message}", file=sys.stderr)
    distributed.shutdown()
    if code is not None:
        sys.exit(code)


def _version(value: bool) -> None:
    if value:
        print(f"selavi {selavi.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def _config(
    preset: str | None,
    clusters: int,
    heads: int | None,
    prior: str | None,
    seed: int | None,
    settings: list[str] | None,
    resumed: str | None,
) -> Any:
    from selavi.config import load_config, preset_for_this_machine
    from selavi.progress import say

    if preset is None and resumed is None:
        preset, why = preset_for_this_machine()
        say(f"preset {preset} ({why}; --preset chooses another)")
    changes = {
        "labelling.num_clusters": clusters,
        "labelling.num_heads": heads,
        "labelling.prior": prior,
        "seed": seed,
    }
    given = {key: value for key, value in changes.items() if value is not None}
    return load_config(preset or resumed, overrides=settings or [], changes=given)


def _resumed(out: Path, resume: bool) -> str | None:
    """The settings of the run in `out`, where it is to be continued."""
    stored = out / "config.yaml"
    return str(stored) if resume and stored.exists() else None


def _say_written(path: Path) -> None:
    from selavi.progress import say

    say(f"labels: {path / 'labels.csv'}")
