"""Checkpoints that are whole or absent, and that cannot execute code when loaded."""

from pathlib import Path
from typing import Any

import torch

from selavi.atomic import replacing
from selavi.errors import SelaviError

FORMAT = 2


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values to `path`; a crash leaves the former file."""
    with replacing(path) as temporary:
        try:
            torch.save({"format": FORMAT, **content}, temporary)
        except RuntimeError as error:  # torch's way of telling that the disk is full
            raise OSError(str(error).splitlines()[0]) from error


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, tensors on the CPU.

    Raises SelaviError where the file is missing, damaged or of another format.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SelaviError(f"{path} does not exist: run `selavi cluster` first") from None
    except Exception as error:  # torch.load raises many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SelaviError(f"cannot read the checkpoint {path}: {reason}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SelaviError(f"{path} is not a checkpoint of this version: start a new run")
    return content
