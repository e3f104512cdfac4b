"""The alternation: predict the labels, re-assign the labels."""

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from selavi import distributed, progress
from selavi.config import Config
from selavi.data.loader import Batch, ClipLoader
from selavi.errors import SelaviError
from selavi.labelling.alignment import align_modalities, alignment_cost
from selavi.labelling.assignment import Assignment, clustering_round, head_groups
from selavi.labelling.prototypes import prototype_outputs
from selavi.labelling.schedule import round_steps
from selavi.models.audio_visual import AudioVisualModel
from selavi.training.batches import EpochOrder, inputs, presence
from selavi.training.checkpoint import load_checkpoint, save_checkpoint
from selavi.training.inference import autocast, hidden_features, predictions
from selavi.training.interruption import Interrupted, InterruptionFlag
from selavi.training.loss import multi_head_loss

#: Draw numbers keep the augmentations of training, preparation and clustering rounds apart.
PREPARATION_DRAW = 1_000_000
FIRST_ROUND_DRAW = 2_000_000
#: Clips that prototypes are drawn from, at most: their features are held in memory.
PROTOTYPE_CLIPS = 10_000
#: Steps between two looks at the loss: each look waits for the device.
LOSS_INTERVAL = 10


class Trainer:
    """Trains a model on labels that it re-assigns on schedule.

    All randomness is a function of (seed, process, step), so a run that is stopped and resumed
    from its checkpoint ends with the labels of an uninterrupted one.

    Args:
        model: on `device`.
        loader: the collection.
        config: settings of the whole run.
        prior: (K,) cluster sizes.
        folder: receives ``checkpoint.pt`` and ``tensorboard/``.
    """

    def __init__(
        self,
        model: AudioVisualModel,
        loader: ClipLoader,
        config: Config,
        prior: Tensor,
        folder: Path,
        device: torch.device,
    ) -> None:
        self.model, self.loader, self.config, self.prior = model, loader, config, prior
        self.device = device
        self.checkpoint = folder / "checkpoint.pt"
        self.order = EpochOrder(loader.num_clips, config.training.batch_size, config.seed)
        self.epochs = max(
            config.training.epochs, math.ceil(config.training.min_steps / self.order.steps)
        )
        self.total_steps = self.epochs * self.order.steps
        self.due = round_steps(
            self.total_steps, config.labelling.rounds, config.labelling.schedule_power
        )
        self.replica = _replicate(model, device)
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=config.training.lr,
            momentum=config.training.momentum,
            weight_decay=config.training.weight_decay,
        )
        self.writer = SummaryWriter(str(folder / "tensorboard")) if distributed.is_main() else None
        self.flag = InterruptionFlag()
        self.step = 0
        self.rounds = 0
        self.prepared = False
        self.labels: Tensor | None = None
        self.history: list[dict[str, Any]] = []
        self._losses: list[Tensor] = []
        self._last_save = time.monotonic()

    def fit(self) -> None:
        """Train to the end.

        Raises:
            Interrupted: SIGTERM or SIGUSR1 came; the state is saved.
            SelaviError: the loss is no longer finite; the last good checkpoint is kept.
        """
        with self.flag:
            if not self.prepared:
                self._prepare()
            total = len(self.due) + self.total_steps
            with progress.task("training", total) as self._advance:
                self._advance(self.step + self.rounds)
                for epoch in range(self.step // self.order.steps, self.epochs):
                    self._epoch(epoch)
        if self.writer:
            self.writer.close()

    def _epoch(self, epoch: int) -> None:
        indices = self.order.indices(epoch, self.step - epoch * self.order.steps)
        batches = self.loader.batches(
            indices, batch_size=self.order.batch_size, augment=True, draw=epoch
        )
        for batch in batches:
            while self.rounds < len(self.due) and self.due[self.rounds] <= self.step:
                self._round()
            self._train_step(batch.to(self.device))
            self._leave_if_asked()
            if self._save_is_due():
                self.save()
        self.save()

    def _prepare(self) -> None:
        """Warm BatchNorm up, then let the audio heads speak of the video heads' clusters."""
        warmup = self.config.training.bn_warmup_batches
        indices = self.order.indices(0, 0)[: warmup * self.order.batch_size]
        torch.manual_seed(self._step_seed())
        self.model.train()
        with torch.no_grad():
            for batch in self.loader.batches(
                indices, batch_size=self.order.batch_size, augment=True, draw=PREPARATION_DRAW
            ):
                with autocast(self.device, self.config.training.precision):
                    self.replica(**inputs(batch.to(self.device), self.model.modalities))
        self._share_statistics()
        if self.config.labelling.initialization == "prototypes":
            self._start_from_prototypes()
        if self.config.labelling.alignment and len(self.model.modalities) == 2:
            self._align()
        self.prepared = True
        self.save()

    def _start_from_prototypes(self) -> None:
        order = torch.randperm(
            self.loader.num_clips, generator=torch.Generator().manual_seed(self.config.seed)
        )
        some = order[:PROTOTYPE_CLIPS].sort().values
        total = 2 * len(distributed.shard(len(some)))
        with progress.task("choosing prototypes", total) as advance:
            hidden = hidden_features(
                self.model,
                self.loader,
                some,
                config=self.config.training,
                device=self.device,
                draw=PREPARATION_DRAW + 2,
                on_batch=advance,
            )
        outputs = prototype_outputs(hidden, self.prior, self.config.labelling, self.config.seed)
        for modality, (weight, bias) in outputs.items():
            self.model.heads[modality].set_outputs(
                distributed.broadcast(weight), distributed.broadcast(bias)
            )

    def _align(self) -> None:
        heads, clusters = self.config.labelling.num_heads, self.config.labelling.num_clusters
        cost = torch.zeros(heads, clusters, clusters, dtype=torch.float64, device=self.device)
        with progress.task("aligning the modalities", self._shard_size()) as advance:
            for _, (video, audio), present in self._predict(
                torch.arange(heads), PREPARATION_DRAW + 1, advance
            ):
                both = present.all(0)
                if both.any():
                    cost += alignment_cost(video[:, both], audio[:, both])
        self.model.heads["audio"].permute_outputs(align_modalities(cost).to(self.device))

    def _round(self) -> None:
        """Re-assign all heads' labels, and save."""
        labelling = self.config.labelling
        groups = head_groups(
            labelling.num_heads, labelling, seed=self.config.seed, round_=self.rounds
        )
        first_draw = FIRST_ROUND_DRAW + self.rounds * len(groups) * labelling.views
        self._share_statistics()
        total = len(groups) * labelling.views * self._shard_size()
        with progress.task(f"clustering round {self.rounds + 1}", total) as advance:
            result = clustering_round(
                lambda heads, draw: self._predict(heads, draw, advance),
                groups,
                self.loader.num_clips,
                self.prior,
                labelling,
                first_draw,
            )
        self._record(result)
        self.labels = result.labels
        self.rounds += 1
        self._advance()
        self.save()

    def _predict(self, heads: Tensor, draw: int, advance: progress.Advance) -> Any:
        for prediction in predictions(
            self.model,
            self.loader,
            config=self.config.training,
            device=self.device,
            heads=heads,
            augment=True,
            draw=draw,
        ):
            self._leave_if_asked()
            advance(len(prediction[0]))
            yield prediction

    def _record(self, result: Assignment) -> None:
        changed = 1.0
        if self.labels is not None:
            changed = (result.labels != self.labels.to(result.labels.device)).double().mean().item()
        entry = {
            "step": self.step,
            "error": result.error.max().item(),
            "converged": bool(result.converged.all()),
            "passes": result.passes.double().mean().item(),
            "changed": changed,
        }
        self.history.append(entry)
        if not entry["converged"]:
            progress.say(
                f"clustering round {self.rounds + 1}: the assignment stopped at a column error of "
                f"{entry['error']:.1e}, above labelling.tol {self.config.labelling.tol:.1e}"
            )
        if self.writer:
            for key in ("error", "passes", "changed"):
                self.writer.add_scalar(f"round/{key}", entry[key], self.step)

    def _train_step(self, batch: Batch) -> None:
        assert self.labels is not None
        torch.manual_seed(self._step_seed())
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        modalities = self.model.modalities
        with autocast(self.device, self.config.training.precision):
            logits = self.replica(**inputs(batch, modalities))
        labels = self.labels[:, batch.index.to(self.labels.device)]
        loss = multi_head_loss(logits, labels, presence(batch, modalities))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.training.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.training.clip_norm)
        self.optimizer.step()
        self._losses.append(loss.detach())
        self.step += 1
        if len(self._losses) == LOSS_INTERVAL:
            self._look_at_losses()
        self._advance()

    def _look_at_losses(self) -> None:
        if not self._losses:
            return
        losses = torch.stack(self._losses)
        self._losses.clear()
        if distributed.any_rank(not bool(losses.isfinite().all()), self.device):
            kept = (
                f"{self.checkpoint} keeps the last good state" if self.rounds else "nothing saved"
            )
            raise SelaviError(
                f"training diverged by step {self.step}: the loss is not finite; {kept}; "
                "use a smaller training.lr or a training.clip_norm"
            )
        if self.writer:
            self.writer.add_scalar("train/loss", losses.mean().item(), self.step)
            self.writer.add_scalar("train/lr", self._learning_rate(), self.step)

    def _learning_rate(self) -> float:
        training = self.config.training
        epoch = self.step / self.order.steps
        lr = training.lr * distributed.world_size()
        if epoch < training.warmup_epochs:
            return lr * (self.step + 1) / (training.warmup_epochs * self.order.steps)
        if training.lr_schedule == "constant":
            return lr
        left = max(self.epochs - training.warmup_epochs, 1)
        done = (epoch - training.warmup_epochs) / left
        return lr * 0.5 * (1 + math.cos(math.pi * done))

    def _step_seed(self) -> int:
        return (self.config.seed * 1_000_003 + self.step) * 4_096 + distributed.rank()

    def _shard_size(self) -> int:
        return len(distributed.shard(self.loader.num_clips))

    def _share_statistics(self) -> None:
        """Without SyncBatchNorm each process has statistics of its own: rank 0's count."""
        for buffer in self.model.buffers():
            distributed.broadcast(buffer)

    def _leave_if_asked(self) -> None:
        if distributed.any_rank(self.flag.is_set, self.device):
            self.save()
            raise Interrupted

    def _save_is_due(self) -> bool:
        late = time.monotonic() - self._last_save > 60 * self.config.training.checkpoint_minutes
        return distributed.any_rank(late, self.device)

    def save(self, final: dict[str, Any] | None = None) -> None:
        """Write the checkpoint, once the losses so far are known to be finite.

        Args:
            final: what labelling other clips needs, once the run is finished.
        """
        self._look_at_losses()
        if distributed.is_main():
            save_checkpoint(
                self.checkpoint,
                {
                    "config": asdict(self.config),
                    "model": self.model.state_dict(),
                    "optimizer": self.optimizer.state_dict(),
                    "step": self.step,
                    "rounds": self.rounds,
                    "prepared": self.prepared,
                    "labels": self.labels,
                    "history": self.history,
                    **({"final": final} if final else {}),
                },
            )
        self._last_save = time.monotonic()

    def resume(self) -> None:
        """Continue from the checkpoint in the run folder."""
        content = load_checkpoint(self.checkpoint)
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.rounds = content["step"], content["rounds"]
        self.prepared, self.history = content["prepared"], content["history"]
        if content["labels"] is not None:
            self.labels = content["labels"].to(self.device)


def _replicate(model: AudioVisualModel, device: torch.device) -> nn.Module:
    """The model as training calls it: itself, or its distributed wrapper."""
    if distributed.world_size() == 1:
        return model
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return DistributedDataParallel(model, device_ids=[device.index])
    return DistributedDataParallel(model)
