"""Reading the checkpoints that the SeLaVi authors released."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selavi.errors import SelaviError
from selavi.models.audio_visual import AudioVisualModel
from selavi.models.config import MODALITIES, ModelConfig

# Positions of the layers that hold tensors in a released head.
_EXPAND, _NORM, _OUTPUT = 2, 4, 8


def load_official(source: str | Path | Mapping[str, Any]) -> AudioVisualModel:
    """Build the paper's model with the weights of an official checkpoint.

    The layout is R(2+1)D-18 under `video_network.base`, ResNet-9 under `audio_network.base` and
    a two-layer MLP a head under `mlp_v{h}.block_forward` and `mlp_a{h}.block_forward` (`mlp_v`,
    `mlp_a` where there is one head), each key with or without a leading `module.`. H, K and the
    hidden width are read off the tensors.

    Args:
        source: the file, or what `torch.load` returned, or its `model` entry.

    Returns:
        The model on the CPU, in training mode.

    Raises:
        SelaviError: an unreadable file, one that holds more than tensors and plain values, or
            one whose keys or shapes are not exactly those of the layout.
    """
    name = "the checkpoint" if isinstance(source, Mapping) else str(source)
    content = source if isinstance(source, Mapping) else _load_tensors(Path(source))
    state = content.get("model", content)
    if not isinstance(state, Mapping):
        raise SelaviError(f"{name}: its `model` entry is no mapping of tensors")
    official = {key.removeprefix("module."): value for key, value in state.items()}

    head_suffixes = sorted(
        {m[1] for key in official if (m := re.match(r"mlp_v(\d*)\.block_forward\.", key))},
        key=lambda suffix: int(suffix or 0),
    )
    if not head_suffixes:
        raise SelaviError(
            f"{name} holds no `mlp_v*.block_forward` heads: give a checkpoint of the official "
            "release with MLP heads"
        )
    first = f"mlp_v{head_suffixes[0]}.block_forward"
    hidden, num_clusters = (
        len(official.get(f"{first}.{layer}.weight", ())) for layer in (_EXPAND, _OUTPUT)
    )
    model = AudioVisualModel(
        ModelConfig(video="r2plus1d_18", audio="resnet9", hidden=max(hidden, 1)),
        num_clusters=num_clusters,
        num_heads=len(head_suffixes),
    )
    _check_layout(name, official, _official_shapes(model, head_suffixes))
    model.load_state_dict(_convert(official, model, head_suffixes))
    return model


def _load_tensors(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SelaviError(f"cannot read {path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise SelaviError(
            f"{path} is no checkpoint of tensors and plain values alone, and selavi runs no code "
            "from a checkpoint: save its `model` entry by itself and load that"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise SelaviError(f"{path} is damaged or no PyTorch checkpoint: copy it again") from error
    if not isinstance(content, Mapping):
        raise SelaviError(f"{path} holds a {type(content).__name__}, not a checkpoint's mapping")
    return content


def _official_shapes(
    model: AudioVisualModel, head_suffixes: list[str]
) -> dict[str, tuple[int, ...]]:
    """Every key of the official layout for a model of this size, with its tensor's shape."""
    shapes: dict[str, tuple[int, ...]] = {}
    hidden, num_clusters = model.config.hidden, model.num_clusters
    for modality in MODALITIES:
        for key, tensor in model.encoders[modality].state_dict().items():
            shapes[f"{modality}_network.base.{key}"] = tuple(tensor.shape)
        for suffix in head_suffixes:
            head = f"mlp_{modality[0]}{suffix}.block_forward"
            shapes[f"{head}.{_EXPAND}.weight"] = (hidden, model.embedding_dims[modality])
            for statistic in ("weight", "bias", "running_mean", "running_var"):
                shapes[f"{head}.{_NORM}.{statistic}"] = (hidden,)
            shapes[f"{head}.{_NORM}.num_batches_tracked"] = ()
            shapes[f"{head}.{_OUTPUT}.weight"] = (num_clusters, hidden)
            shapes[f"{head}.{_OUTPUT}.bias"] = (num_clusters,)
    return shapes


def _check_layout(
    name: str, state: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    wrong = [
        key
        for key in shapes.keys() & state.keys()
        if not isinstance(state[key], Tensor) or tuple(state[key].shape) != shapes[key]
    ]
    problems = {
        "lacks": shapes.keys() - state.keys(),
        "has unknown": state.keys() - shapes.keys(),
        "has unfit": wrong,
    }
    told = [
        f"{what} {len(keys)} tensor(s), such as {min(keys)}"
        for what, keys in problems.items()
        if keys
    ]
    if told:
        raise SelaviError(
            f"{name} does not fit the official R(2+1)D-18 / ResNet-9 layout: it " + "; ".join(told)
        )


def _convert(
    official: Mapping[str, Tensor], model: AudioVisualModel, head_suffixes: list[str]
) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for modality in MODALITIES:
        for key in model.encoders[modality].state_dict():
            state[f"encoders.{modality}.{key}"] = official[f"{modality}_network.base.{key}"]
        layers = [
            {
                key.removeprefix(f"mlp_{modality[0]}{suffix}.block_forward."): value
                for key, value in official.items()
                if key.startswith(f"mlp_{modality[0]}{suffix}.")
            }
            for suffix in head_suffixes
        ]
        ours = f"heads.{modality}"
        state[f"{ours}.expand.weight"] = torch.cat([x[f"{_EXPAND}.weight"] for x in layers])
        for statistic in ("weight", "bias", "running_mean", "running_var"):
            state[f"{ours}.norm.{statistic}"] = torch.cat(
                [x[f"{_NORM}.{statistic}"] for x in layers]
            )
        state[f"{ours}.norm.num_batches_tracked"] = layers[0][f"{_NORM}.num_batches_tracked"]
        state[f"{ours}.weight"] = torch.stack([x[f"{_OUTPUT}.weight"].T for x in layers])
        state[f"{ours}.bias"] = torch.stack([x[f"{_OUTPUT}.bias"] for x in layers])
    return state
