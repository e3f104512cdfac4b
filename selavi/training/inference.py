"""A trained or half-trained model's answers for all clips."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from selavi import distributed
from selavi.data.loader import ClipLoader
from selavi.labelling.prototypes import HiddenFeatures
from selavi.models.audio_visual import AudioVisualModel
from selavi.training.batches import inputs, presence
from selavi.training.config import TrainingConfig


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The arithmetic that `TrainingConfig.precision` names."""
    hardware = device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()
    enabled = precision == "bfloat16" or (precision == "auto" and hardware)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


@torch.no_grad()
def predictions(
    model: AudioVisualModel,
    loader: ClipLoader,
    *,
    config: TrainingConfig,
    device: torch.device,
    heads: Tensor,
    augment: bool,
    draw: int = 0,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
    """Logits of this rank's clips, in batches.

    Yields (index (B,), one (len(heads), B, K) a modality, presence (modalities, B) bool). The
    model runs in evaluation mode, and between batches is in the mode it was in.
    """
    shard = distributed.shard(loader.num_clips)
    for batch in loader.batches(shard, batch_size=config.batch_size, augment=augment, draw=draw):
        batch = batch.to(device)
        was_training = model.training
        model.eval()
        with autocast(device, config.precision):
            logits = model(**inputs(batch, model.modalities))
        model.train(was_training)
        chosen = [values[heads.to(device)].float() for values in logits.values()]
        present = torch.stack(list(presence(batch, logits).values()))
        yield batch.index, chosen, present
        on_batch(len(batch.index))


@torch.no_grad()
def hidden_features(
    model: AudioVisualModel,
    loader: ClipLoader,
    clips: Tensor,
    *,
    config: TrainingConfig,
    device: torch.device,
    draw: int,
    on_batch: Callable[[int], None] = lambda count: None,
) -> dict[str, HiddenFeatures]:
    """What the heads' output layers see of `clips` (M,); each rank reads its share and gets all."""
    model.eval()
    mine = clips[distributed.shard(len(clips))]
    parts: dict[str, tuple[list[Tensor], ...]] = {m: ([], [], []) for m in model.modalities}
    for view, augment in enumerate((False, True)):
        for batch in loader.batches(mine, batch_size=config.batch_size, augment=augment, draw=draw):
            batch = batch.to(device)
            with autocast(device, config.precision):
                embeddings = model.embed(**inputs(batch, model.modalities))
                for modality, values in embeddings.items():
                    features = model.heads[modality].hidden(values).float()
                    parts[modality][view].append(features)
            if not augment:
                for modality, has in presence(batch, embeddings).items():
                    parts[modality][2].append(has)
            on_batch(len(batch.index))
    return {
        modality: HiddenFeatures(
            *(
                distributed.gather_shards(torch.cat(tensors, dim), len(clips), dim)
                for tensors, dim in zip(lists, (1, 1, 0), strict=True)
            )
        )
        for modality, lists in parts.items()
    }


@dataclass(frozen=True)
class Answers:
    """One head's answers for all clips, from their centre views, on the CPU.

    Attributes:
        log_p: modality -> (N, K) float32 log-probabilities.
        embeddings: modality -> (N, D) float32 of the encoder.
        present: modality -> (N,) bool; rows of absent modalities mean nothing.
    """

    log_p: dict[str, Tensor]
    embeddings: dict[str, Tensor]
    present: dict[str, Tensor]


@torch.no_grad()
def answers(
    model: AudioVisualModel,
    loader: ClipLoader,
    *,
    config: TrainingConfig,
    device: torch.device,
    head: int,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Answers:
    """Run the model over all clips, each rank over its share; every rank gets all answers."""
    model.eval()
    parts: dict[tuple[str, str], list[Tensor]] = {}
    shard = distributed.shard(loader.num_clips)
    for batch in loader.batches(shard, batch_size=config.batch_size, augment=False, draw=0):
        batch = batch.to(device)
        with autocast(device, config.precision):
            embeddings = model.embed(**inputs(batch, model.modalities))
            logits = model.classify(embeddings)
        present = presence(batch, logits)
        for modality in logits:
            parts.setdefault(("log_p", modality), []).append(
                logits[modality][head].float().log_softmax(-1)
            )
            parts.setdefault(("embeddings", modality), []).append(embeddings[modality].float())
            parts.setdefault(("present", modality), []).append(present[modality])
        on_batch(len(batch.index))
    fields: dict[str, dict[str, Tensor]] = {"log_p": {}, "embeddings": {}, "present": {}}
    for (field, modality), tensors in parts.items():
        whole = distributed.gather_shards(torch.cat(tensors), loader.num_clips, dim=0)
        fields[field][modality] = whole.cpu()
    return Answers(**fields)
