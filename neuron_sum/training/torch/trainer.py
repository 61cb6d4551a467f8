"""transformers' Trainer with a resumable order, exact counts, and FSDP that works without an accelerator."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput

from neuron_sum.data.encoding import IGNORED
from neuron_sum.data.rows import Batch, RowSet, count_tokens
from neuron_sum.models.base import is_decoder_only
from neuron_sum.recipes.schema import TrainConfig
from neuron_sum.training.callbacks import FINITE, StopOnDivergence, all_finite
from neuron_sum.training.loss import split_labels
from neuron_sum.training.slices import slices
from neuron_sum.training.torch.order import EpochOrder, SetEpoch


class SumThenDivide(TrainerCallback):  # type: ignore[misc]
    """Corrects FSDP2's gradients over gloo.

    torch 2.8.0 reduces them with ReduceOp.AVG, which gloo computes as a sum: gradients are too large by a factor of the
    number of processes. AdamW hides this; clipping and weight decay do not.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: torch.nn.Module, **_: Any
    ) -> None:
        """Called after the model is sharded."""
        for module in model.modules():
            if isinstance(module, FSDPModule) and args.device.type == "cpu":
                module.set_force_sum_reduction_for_comms(True)


class HFTrainer(transformers.Trainer):  # type: ignore[misc]
    """Overrides of transformers' Trainer; each docstring gives the reason.

    Args:
        config: The recipe's train section, for sharding and slices.
        set_epoch: The callback that sets the epoch of the order.
        divergence: The check of losses, gradients and weights.
        **options: The options of Trainer.
    """

    def __init__(
        self, *, config: TrainConfig, set_epoch: SetEpoch, divergence: StopOnDivergence, **options: Any
    ) -> None:
        self._config, self._set_epoch, self._divergence = config, set_epoch, divergence
        self._rotation: tuple[int, dict[str, Any]] | None = None
        super().__init__(**options)
        self.add_callback(set_epoch)
        if self.is_fsdp_enabled:
            self.add_callback(SumThenDivide())

    def _get_train_sampler(self, train_dataset: RowSet | None = None) -> EpochOrder:
        """Return the order of training; EpochOrder lists the bugs of transformers' samplers."""
        self._set_epoch.order = EpochOrder((train_dataset or self.train_dataset).plan)
        return self._set_epoch.order

    def _get_eval_sampler(self, eval_dataset: RowSet) -> EpochOrder:
        """Return the same rows at every evaluation."""
        return EpochOrder(eval_dataset.plan)

    def training_step(
        self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Count the tokens first, compute in slices, and stop at a loss that is not finite.

        transformers would sum the attention mask, which in packed rows is not a count of tokens, and log the mean of
        losses that are not finite as 0. Processes exchange gradients once, after the last slice.
        """
        if self._rotation is not None and self.state.global_step > self._rotation[0]:
            super()._rotate_checkpoints(**self._rotation[1])
            self._rotation = None
        tokens = count_tokens(inputs).to(self.args.device)
        self.state.num_input_tokens_seen += int(self.accelerator.gather(tokens).sum())
        *others, last = slices(inputs, self._config, self.model.config)
        loss = torch.zeros((), device=self.args.device)
        for part in [*others, last]:
            with nullcontext() if part is last else self.accelerator.no_sync(model):
                loss += super().training_step(model, part, num_items_in_batch)
        self._divergence.check(self._everywhere(bool(torch.isfinite(loss))), FINITE["loss"], self.state)
        return loss

    def compute_loss(self, model: torch.nn.Module, inputs: Batch, *args: Any, **options: Any) -> Any:
        """Compute logits only where labels are."""
        decoder_only, all_logits = is_decoder_only(self.model.config), self.args.n_gpu > 1
        features, labels = split_labels(inputs, decoder_only=decoder_only, all_logits=all_logits)
        return super().compute_loss(model, {**features, "labels": labels}, *args, **options)

    def _everywhere(self, finite: bool) -> bool:
        """Whether it is true in every process, so that all of them stop at the same step."""
        return bool(self.accelerator.gather(torch.tensor([finite], device=self.args.device)).all())

    def _rotate_checkpoints(self, **options: Any) -> None:
        """Delete the oldest checkpoint only after a finite step from the newest one."""
        self._rotation = self.state.global_step, options

    def save_model(self, *args: Any, **options: Any) -> None:
        """Save only finite weights, in a checkpoint and at the end."""
        self._divergence.check(self._everywhere(all_finite(self.model)), "a weight", self.state)
        super().save_model(*args, **options)

    def prediction_step(
        self, model: torch.nn.Module, inputs: Batch, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """Sum the loss and the label tokens for evaluation_loop, in slices.

        transformers would exchange the number of tokens in every slice, of which processes may have different numbers.
        """
        inputs = self._prepare_inputs(inputs)
        for part in slices(inputs, self._config, self.model.config):
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.compute_loss(model, part)
            if tokens := int((part["labels"] != IGNORED).sum()):  # a slice may have only rows that fill a batch
                self._validation += torch.stack([loss.double() * tokens, loss.new_tensor(tokens)]).to(self._validation)
        return loss, None, None

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **options: Any) -> EvalLoopOutput:
        """Compute the mean over all label tokens; transformers' mean of batch means depends on the batches.

        The random state is restored: a checkpoint at the end of an epoch is saved before the evaluation, so a run
        resumed from it would otherwise continue with a different state than one that evaluated.
        """
        self._validation = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.random.fork_rng():
            output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **options)
        loss, tokens = self.accelerator.reduce(self._validation).tolist()
        output.metrics[f"{metric_key_prefix}_loss"] = loss / tokens
        return output

    def create_accelerator_and_postprocess(self) -> None:
        """Enable FSDP2 without TrainingArguments.

        accelerate 1.8.1 enables it from TrainingArguments for accelerators only; on a CPU it either fails ("no
        available devices") or silently trains data parallel, and FSDP1 ends with a segmentation fault while saving.
        """
        super().create_accelerator_and_postprocess()
        if self._config.fsdp and self.args.world_size > 1:
            state = self.accelerator.state
            state.fsdp_plugin = FullyShardedDataParallelPlugin(
                fsdp_version=2,
                reshard_after_forward=True,
                auto_wrap_policy="transformer_based_wrap",
                transformer_cls_names_to_wrap=list(self.model._no_split_modules),
                state_dict_type="FULL_STATE_DICT",
                cpu_ram_efficient_loading=False,
            )
            clip = self.accelerator.clip_grad_norm_
            # Reading the norm from the DTensor would return only this rank's part.
            self.accelerator.clip_grad_norm_ = lambda *options: clip(*options).full_tensor()
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.is_fsdp_enabled = True
        self._check_gradients()

    def _check_gradients(self) -> None:
        """Stop before a step with gradients that are not finite."""
        clip = self.accelerator.clip_grad_norm_

        def checked(*options: Any) -> Any:
            norm = clip(*options)
            if norm is not None:  # DeepSpeed clips later; the norm is logged
                self._divergence.check(bool(torch.isfinite(norm)), FINITE["grad_norm"], self.state)
            return norm

        self.accelerator.clip_grad_norm_ = checked

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        """Load without accelerate: its FSDP2 loading of a full state dict hangs because only rank 0 communicates."""
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = torch.load(
            Path(resume_from_checkpoint) / "pytorch_model_fsdp.bin", map_location="cpu", weights_only=True
        )
        parameters = dict(self.model_wrapped.named_parameters())
        untied = {name: value for name, value in saved.items() if name in parameters}
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.model_wrapped, untied, options=options)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load AdamW's moments without accelerate, which would silently leave them at zero."""
        if checkpoint is None or not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        moments = torch.load(Path(checkpoint) / "optimizer.bin", map_location="cpu", weights_only=True)
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model_wrapped, optimizer, moments, options=options)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))
