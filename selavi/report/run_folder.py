"""The folder that holds everything of a run, and nothing half-written."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
import yaml
from pyarrow import parquet
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from selavi import distributed
from selavi.atomic import replacing
from selavi.data.manifest import Manifest
from selavi.errors import SelaviError
from selavi.report.label_table import label_table, write_label_table

if TYPE_CHECKING:
    from selavi.labelling.final import ClipLabels
    from selavi.training.inference import Description

# Settings that have an option of their own on the command line.
_OPTIONS = {
    "labelling.num_clusters": "--clusters ",
    "labelling.num_heads": "--heads ",
    "labelling.prior": "--prior ",
    "seed": "--seed ",
}


class RunFolder:
    """Names of a run's files, and how they are written and read.

    Every file is written whole under a temporary name and then renamed, so that a crash loses
    nothing of an earlier run. Making the object touches no file.

    Args:
        path: the folder.

    Attributes:
        manifest, config, checkpoint, labels_parquet, labels_csv, features, metrics: files.
        tensorboard: a folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = self.path / "manifest.parquet"
        self.config = self.path / "config.yaml"
        self.checkpoint = self.path / "checkpoint.pt"
        self.labels_parquet = self.path / "labels.parquet"
        self.labels_csv = self.path / "labels.csv"
        self.features = self.path / "features.safetensors"
        self.metrics = self.path / "metrics.json"
        self.tensorboard = self.path / "tensorboard"

    @classmethod
    def open(
        cls, path: str | Path, config: Mapping[str, Any] | None, *, resume: bool = False
    ) -> RunFolder:
        """Make the folder if need be, see that a run may be written there, write config.yaml.

        Under `torchrun`, call it in every process; the main one alone touches the folder.

        Args:
            path: the folder.
            config: the run's settings, nested plain values; None for labels without a run of
                their own.
            resume: continue the run that the folder holds, if it holds one.

        Raises:
            SelaviError: the folder cannot be written; it holds a run with other settings, or any
                run where `resume` is false; or it holds a file under one of a run's names without
                being a run folder, such as a collection's own labels.csv.
        """
        run = cls(path)
        if distributed.is_main():
            run._check_writable()
            run._check_earlier(config, resume)
            if config is not None:
                run._write_config(config)
        distributed.barrier()
        return run

    @property
    def holds_run(self) -> bool:
        """Something is there that took time to make."""
        return self.checkpoint.exists() or self.labels_parquet.exists()

    def _check_writable(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise SelaviError(
                f"cannot write to {self.path}: {error.strerror or error}; choose another --out"
            ) from error

    def _check_earlier(self, config: Mapping[str, Any] | None, resume: bool) -> None:
        if not (self.config.exists() or self.manifest.exists()):
            written = (
                self.checkpoint, self.labels_parquet, self.labels_csv, self.features, self.metrics
            )  # fmt: skip
            if foreign := [file.name for file in written if file.exists()]:
                raise SelaviError(
                    f"{self.path} is no run folder but holds a {foreign[0]}, which would be lost: "
                    "choose another --out"
                )
            return
        stored = flatten(self.read_config()) if self.config.exists() else {}
        if self.config.exists() and "labelling.num_clusters" not in stored:
            raise SelaviError(
                f"{self.config} is not that of a run: choose another --out or move it away"
            )
        if not self.holds_run:
            return
        if config is None and not stored:
            return  # labels that `selavi assign` wrote are written again
        if config is None or not stored:
            kind = "a run" if stored else "labels of `selavi assign`"
            raise SelaviError(f"{self.path} holds {kind}: choose another --out")
        wanted = flatten(config)
        for key in [*wanted, *(stored.keys() - wanted.keys())]:
            if (held := stored.get(key)) != (asked := wanted.get(key)):
                option = _OPTIONS.get(key, f"--set {key}=")
                raise SelaviError(
                    f"{self.path} holds a run with {key} {held}, you asked for {asked}: choose "
                    f"another --out or pass {option}{held}"
                )
        if not resume:
            raise SelaviError(
                f"{self.path} already holds a run: pass --resume to continue it or choose "
                "another --out"
            )

    def _write_config(self, config: Mapping[str, Any]) -> None:
        with replacing(self.config) as temporary:
            temporary.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")

    def read_config(self) -> dict[str, Any]:
        """Read config.yaml.

        Raises:
            SelaviError: it is missing or is no YAML mapping.
        """
        try:
            config = yaml.safe_load(self._text_of(self.config))
        except yaml.YAMLError as error:
            raise SelaviError(f"{self.config} is not valid YAML: {_one_line(error)}") from error
        if not isinstance(config, dict):
            raise SelaviError(f"{self.config} holds no settings: choose another run folder")
        return config

    def write_manifest(self, manifest: Manifest, *, resume: bool = False) -> None:
        """Write manifest.parquet.

        Args:
            manifest: of all files, usable or not.
            resume: see first that a run in the folder began with the same usable clips.

        Raises:
            SelaviError: it began with others.
        """
        if resume and self.manifest.exists() and self.checkpoint.exists():
            before, now = (
                m.usable().table["path"].to_pylist()
                for m in (Manifest.load(self.manifest), manifest)
            )
            if before != now:
                example = next(iter(sorted(set(before) ^ set(now))))
                raise SelaviError(
                    f"the run in {self.path} began with {len(before)} clips and there are "
                    f"{len(now)} now, {example!r} in one of the two only: restore the collection "
                    "or choose another --out"
                )
        manifest.save(self.manifest)

    def write_labels(
        self, paths: Sequence[str], labels: ClipLabels, head_labels: Tensor | None = None
    ) -> None:
        """Write labels.parquet and labels.csv; see `label_table` for the arguments and columns."""
        table = label_table(paths, labels, head_labels)
        write_label_table(table, self.labels_parquet, self.labels_csv)

    def read_labels(self) -> pa.Table:
        """Read labels.parquet.

        Raises:
            SelaviError: it is missing or damaged.
        """
        try:
            return parquet.read_table(self.labels_parquet)
        except FileNotFoundError as error:
            raise self._missing(self.labels_parquet) from error
        except (OSError, pa.ArrowInvalid) as error:
            raise SelaviError(
                f"cannot read {self.labels_parquet}: {_one_line(error)}; label the clips again"
            ) from error

    def write_features(self, description: Description) -> None:
        """Write features.safetensors: modality -> (N, D) float32 embeddings, rows as in the label
        table, NaN for a clip without that modality. `selavi label` reads this file."""
        tensors = {
            modality: rows.float()
            .where(description.present[modality][:, None], torch.nan)
            .contiguous()
            for modality, rows in description.embeddings.items()
        }
        with replacing(self.features) as temporary:
            save_file(tensors, temporary)

    def read_features(self) -> dict[str, Tensor]:
        """Read features.safetensors.

        Raises:
            SelaviError: it is missing or damaged.
        """
        try:
            return load_file(self.features)
        except FileNotFoundError as error:
            raise self._missing(self.features) from error
        except (OSError, SafetensorError) as error:
            raise SelaviError(f"cannot read {self.features}: {_one_line(error)}") from error

    def write_metrics(self, section: str, values: Mapping[str, Any]) -> None:
        """Set one top-level key of metrics.json and leave the others; not-a-number becomes null."""
        metrics = self.read_metrics() if self.metrics.exists() else {}
        metrics[section] = _plain(values)
        with replacing(self.metrics) as temporary:
            temporary.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")

    def read_metrics(self) -> dict[str, Any]:
        """Read metrics.json.

        Raises:
            SelaviError: it is missing or is no JSON object.
        """
        try:
            metrics = json.loads(self._text_of(self.metrics))
        except json.JSONDecodeError as error:
            raise SelaviError(
                f"{self.metrics} is not valid JSON ({error}): repair or delete it"
            ) from error
        if not isinstance(metrics, dict):
            raise SelaviError(f"{self.metrics} holds no JSON object: repair or delete it")
        return metrics

    def _text_of(self, file: Path) -> str:
        try:
            return file.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._missing(file) from error
        except (OSError, UnicodeDecodeError) as error:
            raise SelaviError(f"cannot read {file}: {_one_line(error)}") from error

    def _missing(self, file: Path) -> SelaviError:
        return SelaviError(
            f"{self.path} has no {file.name}: give the --out folder of a finished `selavi cluster`"
        )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one mapping with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _plain(value: Any) -> Any:
    """Mappings, sequences, tensors and NumPy values as what JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
