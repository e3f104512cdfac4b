"""The alternation: predict the labels, re-assign the labels."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.tensorboard import SummaryWriter

from selavi import distributed, progress
from selavi.config import Config
from selavi.data.loader import Batch, ClipLoader
from selavi.data.pooled import pooled_clips
from selavi.errors import SelaviError
from selavi.labelling.alignment import align_modalities, alignment_cost
from selavi.labelling.assignment import (
    Assignment,
    Prediction,
    clustering_round,
    head_groups,
)
from selavi.labelling.schedule import round_steps
from selavi.labelling.shared import shared_labels
from selavi.models.audio_visual import AudioVisualModel
from selavi.report.run_folder import RunFolder
from selavi.training.batches import EpochOrder, hold_rare_statistics, inputs, presence
from selavi.training.checkpoint import load_checkpoint, save_checkpoint
from selavi.training.inference import autocast, predictions
from selavi.training.interruption import Interrupted, InterruptionFlag
from selavi.training.learning_rate import learning_rate
from selavi.training.loss import multi_head_loss

#: Draw numbers keep the augmentations of training, preparation and clustering rounds apart.
PREPARATION_DRAW = 1_000_000
FIRST_ROUND_DRAW = 2_000_000
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
        run: receives ``checkpoint.pt`` and ``tensorboard/``.
        fingerprint: of the collection.
    """

    def __init__(
        self,
        model: AudioVisualModel,
        loader: ClipLoader,
        config: Config,
        prior: Tensor,
        run: RunFolder,
        fingerprint: str,
        device: torch.device,
    ) -> None:
        self.model, self.loader, self.config, self.prior = model, loader, config, prior
        self.device = device
        self.checkpoint = run.checkpoint
        self.identity = {"clips": fingerprint, "processes": distributed.world_size()}
        self.order = EpochOrder(loader.num_clips, config.training.batch_size, config.seed)
        self.epochs = max(
            config.training.epochs, math.ceil(config.training.min_steps / self.order.steps)
        )
        self.total_steps = self.epochs * self.order.steps
        self.due = round_steps(
            self.total_steps,
            config.labelling.rounds,
            config.labelling.schedule_power,
            first_step=int(config.labelling.shared_fraction * self.total_steps),
        )
        self.replica = _replicate(model, device)
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=config.training.lr,
            momentum=config.training.momentum,
            weight_decay=config.training.weight_decay,
        )
        self.writer = SummaryWriter(str(run.tensorboard)) if distributed.is_main() else None
        self.flag = InterruptionFlag()
        # Processes must agree to stop, which costs them a synchronization.
        self.interval = 1 if distributed.world_size() == 1 else LOSS_INTERVAL
        self.step = 0
        self.rounds = 0
        self.prepared = False
        self.labels: Tensor | None = None
        self.memory: Tensor | None = None
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0  # of training, in all the processes that continued this run
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
            if self.step % self.interval == 0:
                self._leave_if_asked()
                if self._save_is_due():
                    self.save()
        self.save()

    def _prepare(self) -> None:
        """Warm BatchNorm up, find first labels and align the modalities, as configured; save."""
        labelling = self.config.labelling
        warmup = self.config.training.bn_warmup_batches
        indices = self.order.indices(0, 0)[: warmup * self.order.batch_size]
        torch.manual_seed(self._step_seed())
        batches = self.loader.batches(
            indices, batch_size=self.order.batch_size, augment=True, draw=PREPARATION_DRAW
        )
        with torch.no_grad(), progress.task("warming up", len(indices)) as advance:
            for batch in batches:
                batch = batch.to(self.device)
                self.model.train()
                hold_rare_statistics(self.model, batch)
                with autocast(self.device, self.config.training.precision):
                    self.replica(**inputs(batch, self.model.modalities))
                advance(len(batch.index))
        self._share_statistics()
        if labelling.shared_fraction:
            self._share_first_labels()
        if labelling.alignment and len(self.model.modalities) == 2:
            self._align()
        self.prepared = True
        self.save()

    def _share_first_labels(self) -> None:
        """Every head's first labels, from the raw inputs of all clips."""
        labelling = self.config.labelling
        with progress.task("comparing picture and sound", self._shard_size()) as advance:
            pooled, present = pooled_clips(
                self.loader, batch_size=self.order.batch_size, on_batch=advance
            )
        self.labels = torch.empty(
            labelling.num_heads, self.loader.num_clips, dtype=torch.int64, device=self.device
        )
        if distributed.is_main():
            with progress.task("first labels", labelling.num_heads) as advance:
                labels = shared_labels(
                    pooled,
                    present,
                    num_clusters=labelling.num_clusters,
                    num_heads=labelling.num_heads,
                    seed=self.config.seed,
                    on_head=advance,
                )
            self.labels.copy_(torch.from_numpy(labels))
        distributed.broadcast(self.labels)

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
        early = self.step < labelling.prior_from * self.total_steps
        prior = torch.full_like(self.prior, 1 / len(self.prior)) if early else self.prior
        first_draw = FIRST_ROUND_DRAW + self.rounds * len(groups) * labelling.views
        self._share_statistics()
        total = len(groups) * labelling.views * self._shard_size()
        with progress.task(f"clustering round {self.rounds + 1}", total) as advance:
            result, self.memory = clustering_round(
                lambda heads, draw: self._predict(heads, draw, advance),
                groups,
                self.loader.num_clips,
                prior,
                labelling,
                first_draw,
                self.memory,
            )
        self._record(result)
        self.labels = result.labels
        self.rounds += 1
        self._advance()
        self.save()

    def _predict(self, heads: Tensor, draw: int, advance: progress.Advance) -> Iterator[Prediction]:
        for prediction in predictions(
            self.model,
            self.loader,
            config=self.config.training,
            device=self.device,
            heads=heads,
            augment=True,
            draw=draw,
        ):
            if distributed.world_size() == 1:  # else the processes' batches may differ in number
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
        hold_rare_statistics(self.model, batch)
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
            self._stop_diverged()
        if self.writer:
            self.writer.add_scalar("train/loss", losses.mean().item(), self.step)
            self.writer.add_scalar("train/lr", self._learning_rate(), self.step)

    def _stop_diverged(self) -> NoReturn:
        kept = f"{self.checkpoint} keeps the last good state; " if self.checkpoint.exists() else ""
        raise SelaviError(
            f"training diverged by step {self.step}: the loss or a weight is not finite; {kept}"
            "start a new run with a smaller training.lr or a training.clip_norm"
        )

    def _learning_rate(self) -> float:
        epoch = self.step / self.order.steps
        return learning_rate(self.config.training, epoch, self.epochs, self.order.steps)

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
            if self.prepared:  # else it begins anew, from the untouched model
                self.save()
            raise Interrupted

    def _save_is_due(self) -> bool:
        late = time.monotonic() - self._last_save > 60 * self.config.training.checkpoint_minutes
        return distributed.any_rank(late, self.device)

    def save(self, final: dict[str, Any] | None = None) -> None:
        """Write the checkpoint, once the losses and the weights are known to be finite.

        Args:
            final: what labelling other clips needs, once the run is finished.
        """
        self._look_at_losses()
        if not all(bool(t.isfinite().all()) for t in self.model.state_dict().values()):
            self._stop_diverged()
        now = time.monotonic()
        self.seconds, self._last_save = self.seconds + now - self._last_save, now
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
                    "memory": None if final else self.memory,
                    "history": self.history,
                    "seconds": self.seconds,
                    "identity": self.identity,
                    "prior": self.prior,
                    **({"final": final} if final else {}),
                },
            )

    def resume(self) -> None:
        """Continue from the checkpoint in the run folder.

        Raises:
            SelaviError: other clips, another prior or another number of processes than the run
                began with: its labels would not be those of an uninterrupted one.
        """
        content = load_checkpoint(self.checkpoint)
        began = {**content["identity"], "prior": content["prior"].tolist()}
        now = {**self.identity, "prior": self.prior.tolist()}
        for what, value in began.items():
            if now[what] != value:
                raise SelaviError(
                    f"{self.checkpoint} was begun with other {what}: give the same, or start a new "
                    "run with another --out"
                )
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.rounds = content["step"], content["rounds"]
        self.prepared, self.history = content["prepared"], content["history"]
        self.seconds = content["seconds"]
        self.labels, self.memory = (
            None if content[name] is None else content[name].to(self.device)
            for name in ("labels", "memory")
        )


def _replicate(model: AudioVisualModel, device: torch.device) -> nn.Module:
    """The model as training calls it: itself, or its distributed wrapper."""
    if distributed.world_size() == 1:
        return model
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return DistributedDataParallel(model, device_ids=[device.index])
    return DistributedDataParallel(model)
