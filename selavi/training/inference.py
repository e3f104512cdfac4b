"""What a model, trained or half-trained, says of all clips."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from selavi import distributed
from selavi.data.loader import ClipLoader
from selavi.errors import SelaviError
from selavi.labelling.assignment import Prediction
from selavi.models.audio_visual import AudioVisualModel
from selavi.training.batches import inputs, presence
from selavi.training.config import TrainingConfig

#: Clips whose embeddings the heads take at once.
CLASSIFY_BATCH = 4096


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """The arithmetic that `TrainingConfig.precision` names."""
    if device.type == "cuda":
        hardware = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without AMX little is gained, and small encoders were seen to diverge on an AMD Zen 5.
        hardware = torch.cpu._is_amx_tile_supported()
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
) -> Iterator[Prediction]:
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


@dataclass(frozen=True)
class Description:
    """What the encoders make of all clips' centre views, on the CPU.

    Attributes:
        embeddings: modality -> (N, D) float32; rows of absent modalities mean nothing.
        present: modality -> (N,) bool.
    """

    embeddings: dict[str, Tensor]
    present: dict[str, Tensor]


@torch.no_grad()
def describe(
    model: AudioVisualModel,
    loader: ClipLoader,
    *,
    config: TrainingConfig,
    device: torch.device,
    on_batch: Callable[[int], None] = lambda count: None,
) -> Description:
    """Run the encoders over all clips, each rank over its share; every rank gets all.

    Raises:
        SelaviError: the clips have nothing that the model takes, or are fewer than the processes.
    """
    if loader.num_clips < distributed.world_size():
        raise SelaviError(
            f"{loader.num_clips} clips are too few for {distributed.world_size()} processes"
        )
    model.eval()
    embeddings: dict[str, list[Tensor]] = {}
    present: dict[str, list[Tensor]] = {}
    shard = distributed.shard(loader.num_clips)
    for batch in loader.batches(shard, batch_size=config.batch_size, augment=False, draw=0):
        batch = batch.to(device)
        given = inputs(batch, model.modalities)
        if not given:
            raise SelaviError(f"no clip has {' or '.join(model.modalities)}, which the model takes")
        with autocast(device, config.precision):
            embedded = model.embed(**given)
        for modality, has in presence(batch, embedded).items():
            embeddings.setdefault(modality, []).append(embedded[modality].float())
            present.setdefault(modality, []).append(has)
        on_batch(len(batch.index))

    def whole(parts: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        return {
            m: distributed.gather_shards(torch.cat(p), loader.num_clips, dim=0).cpu()
            for m, p in parts.items()
        }

    return Description(whole(embeddings), whole(present))


@torch.no_grad()
def classify(
    model: AudioVisualModel,
    description: Description,
    *,
    config: TrainingConfig,
    device: torch.device,
    heads: Tensor,
) -> dict[str, Tensor]:
    """Log-probabilities of described clips: modality -> (len(heads), N, K) float32 on the CPU."""
    model.eval()
    log_p = {}
    for modality, embeddings in description.embeddings.items():
        parts = []
        for part in embeddings.split(CLASSIFY_BATCH):
            with autocast(device, config.precision):
                logits = model.classify({modality: part.to(device)})[modality]
            parts.append(logits[heads.to(device)].float().log_softmax(-1).cpu())
        log_p[modality] = torch.cat(parts, 1)
    return log_p
