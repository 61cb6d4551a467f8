"""The torch backend: transformers' Trainer on the CPU or all GPUs of the machine, in one process or under torchrun."""

import importlib.util
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from transformers import PretrainedConfig, PreTrainedTokenizerFast, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from neuron_sum.data.layouts import Shape
from neuron_sum.data.rows import Collator, RowSet
from neuron_sum.data.shapes import ShapePlan
from neuron_sum.errors import Interrupted, MissingExtraError
from neuron_sum.models.base import ParameterCount
from neuron_sum.recipes.schema import Recipe, TrainConfig
from neuron_sum.runs.folder import RunFolder
from neuron_sum.training.base import TrainingData, check_reporting
from neuron_sum.training.callbacks import Log, MarkComplete, Progress, StopOnDivergence, StopOnSignal
from neuron_sum.training.estimate.memory import DeviceMemory, device_memory
from neuron_sum.training.loss import TokenLoss
from neuron_sum.training.processes import world_size
from neuron_sum.training.torch.order import SetEpoch
from neuron_sum.training.torch.trainer import HFTrainer

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


HARMLESS_WARNING = "mtime may not be reliable"
"""Trainer's warning when it finds two checkpoints within a second."""


class TorchTrainer:
    """Trains with transformers' Trainer; see base.Trainer for the contract."""

    computes_here: ClassVar[bool] = True

    def __init__(self, run: RunFolder, tokenizer: PreTrainedTokenizerFast, resume_from: Path | None) -> None:
        self.run, self.tokenizer, self.resume_from = run, tokenizer, resume_from

    @staticmethod
    def check(config: TrainConfig, processes: int | None = None) -> None:
        """Check that the required packages are installed before anything is written."""
        check_reporting(config)
        if config.deepspeed and importlib.util.find_spec("deepspeed") is None:
            raise MissingExtraError("deepspeed", "deepspeed")

    @staticmethod
    def check_model(config: PretrainedConfig, recipe: Recipe) -> None:
        """Accept every model that a recipe can describe."""

    @staticmethod
    def memory(
        config: PretrainedConfig, parameters: ParameterCount, shape: Shape, recipe: Recipe, processes: int
    ) -> DeviceMemory:
        """The memory of the CPU or GPU; several processes may shard the model."""
        return device_memory(config, parameters, shape, recipe, processes=processes)

    def train(
        self,
        model: "PreTrainedModel | PeftModel",
        data: TrainingData,
        plan: ShapePlan,
        config: TrainConfig,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> Path:
        """Train and save; return the folder of the weights."""
        on_cpu = not torch.cuda.is_available()
        if on_cpu and world_size() > 1:
            # Otherwise accelerate 1.8.1 loads a checkpoint to "cpu:0", a device that torch does not know.
            os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")
        stop, divergence = StopOnSignal(), StopOnDivergence(self.run, every_step=True)
        validation = None
        if data.validation:
            validation = RowSet(
                data.validation, plan.for_validation(data.validation, config.per_device_eval_batch_size)
            )
        trainer = HFTrainer(
            config=config,
            set_epoch=SetEpoch(),
            divergence=divergence,
            model=model,
            args=self._arguments(config, data, on_cpu),
            data_collator=Collator(plan, model.config),
            compute_loss_func=TokenLoss(shifted=False, label_smoothing=config.label_smoothing_factor),
            train_dataset=RowSet(data.train, plan),
            eval_dataset=validation,
            processing_class=self.tokenizer,
            # Log adds the rate for the callbacks after it
            callbacks=[divergence, Log(self.run), *callbacks, Progress(), MarkComplete(), stop],
        )
        trainer.remove_callback(PrinterCallback)
        with stop.listening(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", HARMLESS_WARNING, UserWarning)
            trainer.train(resume_from_checkpoint=str(self.resume_from) if self.resume_from else None)
        if stop.stopped and trainer.state.global_step < trainer.state.max_steps:
            raise Interrupted(
                f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; everything so far is saved",
                self.run.resume_command,
            )
        self._save(trainer)
        if torch.distributed.is_initialized():
            # Referenced until the trainer is deleted: as the group's last owner, DDP's reducer would wait for gloo's
            # threads without releasing the GIL, which one of them may need to end.
            self._group = torch.distributed.group.WORLD
            torch.distributed.destroy_process_group()
        return self.run.weights

    def _save(self, trainer: HFTrainer) -> None:
        """Write the weights atomically in Hugging Face's layout; every process takes part in gathering shards."""
        temporary = self.run.path / f".{self.run.weights.name}.tmp"
        trainer.save_model(str(temporary))
        if trainer.is_world_process_zero():
            (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.yaml has the same content
            if self.run.weights.exists():  # an earlier process was killed after this and before writing the results
                shutil.rmtree(self.run.weights)
            temporary.replace(self.run.weights)
        trainer.accelerator.wait_for_everyone()

    def _arguments(self, config: TrainConfig, data: TrainingData, on_cpu: bool) -> TrainingArguments:
        eval_strategy = "steps" if config.eval_steps is not None else "epoch"
        return TrainingArguments(
            output_dir=str(self.run.checkpoints),
            learning_rate=config.learning_rate,
            num_train_epochs=config.num_train_epochs,
            max_steps=config.max_steps or -1,
            per_device_train_batch_size=config.per_device_train_batch_size,
            per_device_eval_batch_size=config.per_device_eval_batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            weight_decay=config.weight_decay,
            warmup_ratio=config.warmup_ratio,
            lr_scheduler_type=config.lr_scheduler_type,
            max_grad_norm=config.max_grad_norm,
            bf16=config.bf16,
            gradient_checkpointing=config.gradient_checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None,
            logging_steps=config.logging_steps,
            logging_first_step=True,
            logging_nan_inf_filter=False,  # StopOnDivergence stops instead
            eval_strategy=eval_strategy if data.validation else "no",
            eval_steps=config.eval_steps,
            prediction_loss_only=True,
            save_strategy="steps",
            save_steps=config.save_steps,
            save_total_limit=config.save_total_limit,
            report_to="tensorboard" if "tensorboard" in config.report_to else "none",
            logging_dir=str(self.run.path / "tensorboard"),
            disable_tqdm=True,
            dataloader_pin_memory=not on_cpu,
            use_cpu=on_cpu,
            ddp_backend="gloo" if on_cpu and world_size() > 1 else None,
            deepspeed=config.deepspeed,
            label_names=["labels"],
            seed=config.seed,
        )
