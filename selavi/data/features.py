"""Features that another encoder made, read from a file."""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from selavi.errors import SelaviError


def read_features(path: Path) -> tuple[Tensor | None, Tensor | None, list[str]]:
    """Read arrays ``video`` and/or ``audio``, each (N, D), from an npz or safetensors file.

    Returns:
        video and audio (N, D) float32 or None, and N names: those of an array ``names`` where an
        npz has one, else the row numbers.

    Raises:
        SelaviError: the file cannot be read, or has neither array.
    """
    try:
        arrays = _read(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise SelaviError(f"cannot read {path}: {error}; give an npz or safetensors file") from None
    given = {m: torch.from_numpy(arrays[m]).float() for m in ("video", "audio") if m in arrays}
    if not given:
        found = ", ".join(arrays) or "nothing"
        raise SelaviError(f"{path} holds {found}: give arrays named video and/or audio, N x D")
    rows = len(next(iter(given.values())))
    names = [str(name) for name in arrays.get("names", range(rows))]
    if len(names) != rows:
        raise SelaviError(f"{path} has {len(names)} names for {rows} rows: give one each")
    return given.get("video"), given.get("audio"), names


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors":
        return load_file(path)
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        raise ValueError("it holds one array without a name")
    with loaded:
        return dict(loaded)
