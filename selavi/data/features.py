"""Features that another encoder made, read from a file."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from selavi.errors import SelaviError


def read_features(path: Path) -> tuple[Tensor | None, Tensor | None, list[str]]:
    """Read arrays ``video`` and/or ``audio``, each (N, D), from an npz or safetensors file.

    Returns:
        video and audio (N, D) float32 or None, and N names: those of an array ``names`` where an
        npz has one, else the row numbers.

    Raises:
        SelaviError: the file cannot be read, has neither array, or one of another shape or type.
    """
    try:
        arrays = _read(path)
    except Exception as error:  # of zip, zlib, the tokenizer ...: damage shows in many ways
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SelaviError(
            f"cannot read {path}: {reason}; give an npz or safetensors file"
        ) from error
    given = {m: _numbers(path, m, arrays[m]) for m in ("video", "audio") if m in arrays}
    if not given:
        found = ", ".join(arrays) or "nothing"
        raise SelaviError(f"{path} holds {found}: give arrays named video and/or audio, N x D")
    rows = len(next(iter(given.values())))
    names = np.asarray(arrays.get("names", np.arange(rows)))
    if names.shape != (rows,):
        raise SelaviError(f"{path} has {names.size} names for {rows} rows: give one each")
    return given.get("video"), given.get("audio"), [str(name) for name in names.tolist()]


def _read(path: Path) -> dict[str, np.ndarray | Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        raise ValueError("it holds one array without a name")
    with loaded:
        return dict(loaded)


def _numbers(path: Path, name: str, values: np.ndarray | Tensor) -> Tensor:
    """`values` as (N, D) float32."""
    if isinstance(values, np.ndarray):
        number = values.dtype.kind in "fiub"
    else:
        number = not values.is_complex()
    if not number or values.ndim != 2 or 0 in values.shape:
        raise SelaviError(
            f"{path}: {name} has shape {tuple(values.shape)} and type {values.dtype}: give N x D "
            "numbers"
        )
    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values.astype(np.float32))
    return values.float()
