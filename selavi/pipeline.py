"""The package's jobs from end to end; the command line is a thin layer over these functions."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selavi import distributed, progress
from selavi.config import Config, config_from_dict, config_to_dict
from selavi.data.features import read_features
from selavi.data.loader import ClipLoader, FeatureLoader, open_loader
from selavi.data.manifest import Manifest, scan
from selavi.errors import SelaviError
from selavi.evaluation.baselines import baselines
from selavi.labelling.assignment import assign as solve_assignment
from selavi.labelling.final import ClipLabels, joint_log_p, label_clips, solve_labellings
from selavi.labelling.priors import make_prior
from selavi.labelling.selection import head_agreement
from selavi.models.audio_visual import AudioVisualModel
from selavi.report.run_folder import RunFolder
from selavi.training.checkpoint import load_checkpoint
from selavi.training.inference import Description, classify, describe
from selavi.training.trainer import Trainer


def cache_folder() -> Path:
    """Where scans and decoded clips are kept between runs: $SELAVI_CACHE or the user's cache."""
    if named := os.environ.get("SELAVI_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "selavi"


def reading_processes() -> int:
    """This machine's CPUs, shared between the processes that train on it."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, len(os.sched_getaffinity(0)) // local)


def cluster(
    videos: Path, out: Path, config: Config, *, resume: bool = False, workers: int | None = None
) -> RunFolder:
    """Label a folder of videos from scratch: scan, train, assign, write the run folder `out`.

    Args:
        videos: any nesting, any formats that FFmpeg reads.
        out: created; a run that is already in it is refused unless `resume` continues it.
        config: from `selavi.config.load_config`.
        resume: continue the run in `out`, or start it if there is none.
        workers: processes that read files; default one a CPU, shared by the processes that train.

    Raises:
        SelaviError: unusable input, told in one line.
        selavi.training.interruption.Interrupted: a signal came; resume later.
    """
    device = distributed.initialize()
    workers = workers or reading_processes()
    prior_of(config)  # refuses a bad prior before any file is opened
    if "features" in (config.model.video, config.model.audio):
        raise SelaviError("the preset is made for features: use `selavi label`, or another preset")
    run = RunFolder.open(out, config_to_dict(config), resume=resume)
    manifest = scan_collection(videos, workers)
    names = manifest.usable().table["path"].to_pylist()
    _check_sizes(config, len(names))
    if distributed.is_main():
        run.write_manifest(manifest, resume=resume)
    durations = manifest.usable().table["duration"].to_numpy()
    config = replace(config, data=config.data.fitted(durations))
    loader = load_clips(manifest, videos, config, workers, device)
    train_and_label(loader, names, config, run, device, fingerprint=_fingerprint(names))
    return run


def label_features(features: Path, out: Path, config: Config, *, resume: bool = False) -> RunFolder:
    """Label clips that another encoder has described: train heads only.

    Args:
        features: npz or safetensors, see `selavi.data.features.read_features`.
        out, config, resume: as in `cluster`.
    """
    device = distributed.initialize()
    prior_of(config)  # refuses a bad prior before any file is opened
    if (config.model.video, config.model.audio) != ("features", "features"):
        raise SelaviError("the settings are not made for features: use `selavi cluster`")
    video, audio, names = read_features(features)
    loader = FeatureLoader(video, audio, device=device)
    _check_sizes(config, loader.num_clips)
    run = RunFolder.open(out, config_to_dict(config), resume=resume)
    arrays = [x.numpy() for x in (video, audio) if x is not None]
    train_and_label(loader, names, config, run, device, fingerprint=_fingerprint(names, *arrays))
    return run


def assign(run: RunFolder, videos: Path, out: Path, *, workers: int | None = None) -> ClipLabels:
    """Label other videos with a finished run's model and potentials, without training.

    Writes ``manifest.parquet``, ``labels.parquet`` and ``labels.csv`` into the folder `out`.
    """
    device = distributed.initialize()
    workers = workers or reading_processes()
    content = _finished(run)
    config = config_from_dict(content["config"])
    if config.model.video == "features":
        raise SelaviError(f"{run.path} was made from features: it has no encoder for videos")
    final = content["final"]
    model = build_model(config, final["input_sizes"], device)
    model.load_state_dict(content["model"])
    target = RunFolder.open(out, None)
    manifest = scan_collection(videos, workers)
    loader = load_clips(manifest, videos, config, workers, device)
    found = _describe(model, loader, config, device)
    head = torch.tensor([final["head"]])
    log_p = classify(model, found, config=config.training, device=device, heads=head)
    reported = {modality: values[0] for modality, values in log_p.items()}
    labels = label_clips(reported, found.present, final["potentials"], config.labelling.lam)
    if distributed.is_main():
        target.write_manifest(manifest)
        target.write_labels(manifest.usable().table["path"].to_pylist(), labels)
    return labels


def baseline_labels(
    run: RunFolder, videos: Path, *, workers: int | None = None
) -> dict[str, np.ndarray]:
    """What k-means makes of the run's clips without training: see `evaluation.baselines`.

    Args:
        run: its manifest says which clips, its configuration how they are read.
        videos: the folder that it labelled.
    """
    device = distributed.initialize()
    content = _finished(run)
    config = config_from_dict(content["config"])
    loader = load_clips(
        Manifest.load(run.manifest), videos, config, workers or reading_processes(), device
    )
    model = build_model(config, content["final"]["input_sizes"], device)
    return baselines(loader, model, config.labelling.num_clusters, config.seed)


def scan_collection(videos: Path, workers: int) -> Manifest:
    """Scan once, whatever the number of processes, and say what was found."""
    key = hashlib.sha256(os.fsencode(videos.resolve())).hexdigest()[:16]
    cache = cache_folder() / "scans" / f"{key}.parquet"

    def look() -> Manifest:
        with progress.counted("scanning") as on_progress:
            return scan(videos, workers=workers, cache=cache, on_progress=on_progress)

    manifest = distributed.from_main(look)
    usable, rejected = len(manifest.usable()), len(manifest.rejected())
    progress.say(f"{videos}: {usable} clips to label, {rejected} files left out")
    return manifest


def load_clips(
    manifest: Manifest, videos: Path, config: Config, workers: int, device: torch.device
) -> ClipLoader:
    """The loader of a collection; one process fills its cache, if it has one."""

    def load() -> ClipLoader:
        with progress.counted("decoding") as on_progress:
            return open_loader(
                manifest,
                videos,
                config.data,
                seed=config.seed,
                workers=workers,
                cache_folder=cache_folder() / "clips",
                device=device,
                on_progress=on_progress,
            )

    return distributed.main_first(load)


def input_sizes(loader: ClipLoader) -> dict[str, int]:
    """modality -> channels or feature dimension, of the modalities that the collection has."""
    batch = next(iter(loader.batches(torch.zeros(1).long(), batch_size=1, augment=False, draw=0)))
    given = {"video": batch.video, "audio": batch.audio}
    return {modality: values.shape[1] for modality, values in given.items() if values is not None}


def build_model(config: Config, sizes: dict[str, int], device: torch.device) -> AudioVisualModel:
    """A freshly drawn model for inputs of `sizes`: a function of the seed."""
    torch.manual_seed(config.seed)
    return AudioVisualModel(
        config.model,
        num_clusters=config.labelling.num_clusters,
        num_heads=config.labelling.num_heads,
        modalities=list(sizes),
        **{f"{modality}_inputs": size for modality, size in sizes.items()},
    ).to(device)


def train_and_label(
    loader: ClipLoader,
    names: list[str],
    config: Config,
    run: RunFolder,
    device: torch.device,
    *,
    fingerprint: str,
) -> None:
    """Train (or continue), label all clips, and write the run folder's results.

    Args:
        names: of the N clips.
        fingerprint: of the collection: a run is continued on the clips that it began with only.
    """
    labelling = config.labelling
    prior = prior_of(config)
    sizes = input_sizes(loader)
    model = build_model(config, sizes, device)
    trainer = Trainer(model, loader, config, prior, run, fingerprint, device)
    if run.checkpoint.exists():
        trainer.resume()
    trainer.fit()
    found = _describe(model, loader, config, device)
    log_p = classify(
        model,
        found,
        config=config.training,
        device=device,
        heads=torch.arange(labelling.num_heads),
    )
    heads = solve_assignment(joint_log_p(log_p, found.present), prior, labelling)
    agreement = head_agreement(heads.labels)
    head = int(agreement.argmax())
    reported = {modality: values[head] for modality, values in log_p.items()}
    solved = solve_labellings(reported, found.present, prior, labelling)
    potentials = {name: solution.potentials[0] for name, solution in solved.items()}
    labels = label_clips(reported, found.present, potentials, labelling.lam)
    if distributed.is_main():
        trainer.save(final={"head": head, "potentials": potentials, "input_sizes": sizes})
        run.write_labels(names, labels, heads.labels.where(labels.cluster >= 0, -1))
        run.write_features(found)
        run.write_metrics(
            "training",
            {
                "clips": loader.num_clips,
                "unreadable_clips": int((labels.cluster < 0).sum()),
                "seconds": trainer.seconds,
                "reported_head": head,
                "head_agreement": agreement.tolist(),
                "cluster_sizes": labels.cluster[labels.cluster >= 0]
                .bincount(minlength=labelling.num_clusters)
                .tolist(),
                "final": {
                    name: {"error": s.error.item(), "converged": s.converged.item()}
                    for name, s in solved.items()
                },
                "rounds": trainer.history,
            },
        )
    distributed.barrier()


def _describe(
    model: AudioVisualModel, loader: ClipLoader, config: Config, device: torch.device
) -> Description:
    with progress.task("labelling", len(distributed.shard(loader.num_clips))) as advance:
        return describe(model, loader, config=config.training, device=device, on_batch=advance)


def _fingerprint(names: list[str], *arrays: np.ndarray) -> str:
    digest = hashlib.sha256(repr(names).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def prior_of(config: Config) -> Tensor:
    """(K,) cluster sizes."""
    labelling = config.labelling
    return make_prior(labelling.prior, labelling.num_clusters, gaussian_sd=labelling.gaussian_sd)


def _check_sizes(config: Config, num_clips: int) -> None:
    num_clusters = config.labelling.num_clusters
    if num_clusters > num_clips:
        raise SelaviError(
            f"--clusters is {num_clusters} and there are {num_clips} clips: give fewer clusters"
        )
    if num_clips < 2 * distributed.world_size():
        raise SelaviError(f"{num_clips} clips are too few for {distributed.world_size()} processes")


def _finished(run: RunFolder) -> dict[str, Any]:
    content = load_checkpoint(run.checkpoint)
    if "final" not in content:
        raise SelaviError(f"{run.path} is not finished: run `selavi cluster` with --resume first")
    return content
