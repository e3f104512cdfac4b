"""The table of labels, as parquet and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyarrow import csv, parquet
from torch import Tensor

from selavi.atomic import replacing
from selavi.errors import SelaviError

if TYPE_CHECKING:
    from selavi.labelling.final import ClipLabels

# A spreadsheet takes a cell that starts with one of these for a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def label_table(
    paths: Sequence[str], labels: ClipLabels, head_labels: Tensor | None = None
) -> pa.Table:
    """One row a clip.

    Args:
        paths: N names of clips.
        labels: of N clips.
        head_labels: (H, N) int64, or None where no other head was asked.

    Returns:
        Columns path; cluster and confidence, null for a clip that could not be read; agreement,
        null for a clip that lacks a modality;
        cluster_video and cluster_audio, null for a clip without it; head_0 ... head_{H-1}.

    Raises:
        SelaviError: a name that is no Unicode text.
        ValueError: columns of different lengths.
    """
    if not len(paths) == len(labels.cluster) == len(labels.confidence) == len(labels.agreement):
        raise ValueError(f"{len(paths)} paths for {len(labels.cluster)} labels")
    columns = {
        "path": pa.array([_text(path) for path in paths], pa.string()),
        "cluster": _integers(labels.cluster),
        "confidence": _numbers(labels.confidence),
        "agreement": _numbers(labels.agreement),
    }
    for modality in ("video", "audio"):
        own = labels.by_modality.get(modality)
        columns[f"cluster_{modality}"] = (
            pa.nulls(len(paths), pa.int32()) if own is None else _integers(own)
        )
    for head, own in enumerate(() if head_labels is None else head_labels):
        columns[f"head_{head}"] = _integers(own)
    return pa.table(columns)


def write_label_table(table: pa.Table, parquet_path: Path, csv_path: Path) -> None:
    """Write the same rows to both files.

    In the CSV, a path that a spreadsheet would take for a formula is given as `./path`, which
    names the same file.
    """
    with replacing(parquet_path) as temporary:
        parquet.write_table(table, temporary)
    safe = [
        f"./{path}" if path.startswith(_FORMULA_STARTS) else path
        for path in table["path"].to_pylist()
    ]
    with replacing(csv_path) as temporary:
        csv.write_csv(table.set_column(0, "path", pa.array(safe, pa.string())), temporary)


def _numbers(values: Tensor) -> pa.Array:
    """Numbers, with NaN for none."""
    numbers = values.cpu().numpy()
    return pa.array(numbers, pa.float32(), mask=np.isnan(numbers))


def _integers(values: Tensor) -> pa.Array:
    """Labels, with -1 for none."""
    numbers = values.cpu().numpy().astype(np.int32)
    return pa.array(numbers, mask=numbers < 0)


def _text(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise SelaviError(f"the name {path!a} is not valid Unicode: rename the file") from None
    return path
