"""optimum-neuron's NeuronTrainer, resumable, with one loss for every model and safe saving.

Written for optimum-neuron 0.4.5. Importing this module imports torch_xla, optimum-neuron and neuronx-distributed.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch_xla.core.xla_model as xm
import torch_xla.runtime as xr
import transformers
from neuronx_distributed.parallel_layers.parallel_state import get_data_parallel_rank, get_tensor_model_parallel_rank
from optimum.neuron import NeuronTrainer, NeuronTrainingArguments
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from neuron_sum import files
from neuron_sum.errors import RunError
from neuron_sum.training import launch
from neuron_sum.training.callbacks import StopOnDivergence
from neuron_sum.training.loss import TokenLoss
from neuron_sum.training.neuron.micro_batches import Batch, MicroBatches

WEIGHTS, OPTIMIZER, SCHEDULER, LOOP = "weights-{:02d}.safetensors", "optimizer-{:03d}.pt", "scheduler.pt", "loop.json"
"""The files of a training checkpoint, in addition to transformers' trainer_state.json."""


class CountProgress(TrainerCallback):  # type: ignore[misc]
    """Counts epochs and tokens: upstream counts no tokens, and counts the rest of a resumed run as its first epoch.

    Args:
        batches: The micro-batches of the whole run.
    """

    def __init__(self, batches: MicroBatches[Any]) -> None:
        self._batches = batches

    def on_step_end(
        self, args: NeuronTrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Called before all other callbacks, so that log and checkpoint include the counts."""
        state.epoch = self._batches.epochs(state.global_step)
        state.num_input_tokens_seen += self._batches.tokens(state.global_step - 1).inputs


class ResumableNeuronTrainer(NeuronTrainer):  # type: ignore[misc]
    """Overrides of NeuronTrainer; each docstring gives the reason. The training loop is upstream's, unchanged.

    Upstream rejects resume_from_checkpoint and starts at epoch 0. Therefore it receives the rest of the whole run as
    one epoch of micro-batches.

    Args:
        batches: The micro-batches of the whole run.
        total_steps: The number of optimizer steps of the whole run.
        loss: The loss of a micro-batch.
        divergence: The check of losses and weights, which are read only for the log and for checkpoints.
        resume_from: A checkpoint that this class wrote.
        group: The group of all processes, over main memory; None for one process. MarkComplete waits in it until all
            have saved.
        **options: The options of NeuronTrainer.

    Raises:
        RunError: If a different number of processes wrote the checkpoint.
    """

    def __init__(
        self,
        *,
        batches: MicroBatches[Any],
        total_steps: int,
        loss: TokenLoss,
        divergence: StopOnDivergence,
        resume_from: Path | None,
        group: dist.ProcessGroup | None,
        **options: Any,
    ) -> None:
        options["callbacks"] = [CountProgress(batches), *options.get("callbacks", [])]
        super().__init__(**options)
        self._batches, self._total_steps, self._loss, self._resume_from = batches, total_steps, loss, resume_from
        self._group, self._micro_batch, self._learning_rate = group, 0, 0.0
        self._divergence = divergence
        self._loop: dict[str, Any] = {}
        if resume_from is not None:
            self._loop = files.read_json(resume_from / LOOP)
            if self._loop["processes"] != self._processes:
                raise RunError(
                    f"{resume_from.name} was written by {self._loop['processes']}, this run has {self._processes}",
                    "continue with the same number, started by torchrun as before",
                )
            saved = load_file(resume_from / WEIGHTS.format(get_tensor_model_parallel_rank()))
            trainable = dict(self._trainable_parameters())
            if saved.keys() != trainable.keys():
                raise RunError(f"{resume_from} does not contain the weights that this recipe trains", "use --overwrite")
            with torch.no_grad():
                for name, parameter in trainable.items():
                    parameter.copy_(saved[name])

    # Inputs of the loop

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """Return the rest of the run; upstream would shuffle by the global random state, differently in each process.

        It has a separate generator because a DataLoader otherwise draws a number from the training's random state.
        """
        rest = self._batches.between(self._loop.get("global_step", 0), self._total_steps)
        return DataLoader(rest, batch_size=None, generator=torch.Generator())

    def set_initial_training_values(
        self, args: NeuronTrainingArguments, dataloader: DataLoader[Batch], total_train_batch_size: int
    ) -> tuple[int, int, int, int, bool, int, int]:
        """Return one epoch with the remaining steps; max_steps is that of the whole run, for learning rate and log."""
        rest = len(dataloader)
        return 1, rest, rest, rest, False, rest, self._total_steps

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, *args: Any, **kwargs: Any
    ) -> tuple[list[Batch], torch.Tensor]:
        """Add the number of label tokens of the whole step, over all processes.

        It is a tensor on the device, so that it is an input of the graph and the graph is the same for every number. It
        is divided by the number of data parallel processes because upstream averages their gradients.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, *args, **kwargs)
        self._micro_batch = self.state.global_step * self.args.gradient_accumulation_steps
        labels = self._batches.tokens(self.state.global_step).labels
        return batches, torch.tensor(labels / self.dp_size, dtype=torch.float32).to(xm.xla_device())

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """Return the names of transformers' Trainer. Upstream would also decay T5's `layer_norm`."""
        names: list[str] = transformers.Trainer.get_decay_parameter_names(self, model)
        return names

    # A step

    def training_step(
        self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Seed dropout only by seed, micro-batch and data parallel rank, so that a resumed run repeats it.

        The random state of torch_xla changes with every mark_step, and logging and saving also cause some.
        """
        seed_text = f"{self.args.seed} {self._micro_batch} {get_data_parallel_rank()}"
        seed = int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:4], "big")
        torch.manual_seed(seed)
        xm.set_rng_state(seed)
        self._micro_batch += 1
        self._learning_rate = super()._get_last_learning_rate()
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> Any:
        """Compute the same loss as the torch backend.

        Upstream passes `reduction="sum"` to every model that accepts **kwargs: PEFT's models then fail because T5's
        forward lacks the parameter, and a Hugging Face Llama silently accepts it and is divided by the tokens twice.
        """
        features = {name: value for name, value in inputs.items() if name != "labels"}
        with self.autocast_smart_context_manager(), self.metrics_collector.time_metric("forward_pass", inputs=inputs):
            if self.tp_size > 1:  # each process has a part of the vocabulary, which only the model's loss handles
                outputs = model(**inputs, reduction="sum")
                loss = outputs["loss"] / num_items_in_batch
            else:
                outputs = model(**features)
                loss = self._loss(outputs, inputs["labels"], num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _get_last_learning_rate(self) -> float:
        """Return the learning rate of the logged step; upstream returns that of the next step."""
        return float(self._learning_rate)

    # Saving and resuming

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Also set the counters of a resumed run: upstream does not change them from here to on_train_begin."""
        super().create_optimizer_and_scheduler(num_training_steps)
        if self._resume_from is not None:
            saved = TrainerState.load_from_json(str(self._resume_from / TRAINER_STATE_NAME))
            for name in ("global_step", "num_input_tokens_seen", "log_history"):
                setattr(self.state, name, getattr(saved, name))

    def setup_training(self, *args: Any, **kwargs: Any) -> None:
        """Load the state that upstream has just created: moments, learning rate, and the loss not yet logged."""
        super().setup_training(*args, **kwargs)
        if self._resume_from is not None:
            self.optimizer.load_state_dict(_load(self._resume_from / OPTIMIZER.format(self._optimizer_rank)))
            self.lr_scheduler.load_state_dict(_load(self._resume_from / SCHEDULER))
            self.state.epoch = self._batches.epochs(self.state.global_step)
            self.global_step_last_logged = self._loop["last_logged"]
            self.running_loss += self._loop["running_loss"]
            xm.mark_step()

    def _save_checkpoint(self) -> None:
        """Write the state for resuming without replacing the model's Parameters.

        Upstream saves with load_state_dict(assign=True), which gives a vanilla model new Parameters that the optimizer
        does not update: training continues without an error but learns nothing. It also writes pickles, and a file of
        arguments that duplicates recipe.yaml.
        """
        if launch.extracts_graphs():
            # Run only the device's part: under neuron_parallel_compile it returns no real data.
            _to_cpu([parameter for _, parameter in self._trainable_parameters()])
            _to_cpu(self.optimizer.state_dict())
            self.running_loss.item()
            return
        weights, running_loss = self.check_finite()
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        if get_data_parallel_rank() == 0:
            save_file(weights, folder / WEIGHTS.format(get_tensor_model_parallel_rank()))
        if get_data_parallel_rank() == 0 or self.args.zero_1:
            torch.save(_to_cpu(self.optimizer.state_dict()), folder / OPTIMIZER.format(self._optimizer_rank))
        if self.is_logging_process():
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER)
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            loop = {
                "global_step": self.state.global_step,
                "last_logged": self.global_step_last_logged,
                "running_loss": running_loss,
                "processes": self._processes,
            }
            files.write_json(folder / LOOP, loop)
            self._rotate_checkpoints(use_mtime=False, output_dir=self.args.output_dir)

    def check_finite(self) -> tuple[dict[str, torch.Tensor], float]:
        """The trained weights in main memory, and the loss not yet logged.

        Raises:
            DivergedError: If one of them is not finite in any process.
        """
        weights = {name: parameter.detach().cpu() for name, parameter in self._trainable_parameters()}
        finite = all(bool(torch.isfinite(weight).all()) for weight in weights.values())
        # The mean over the processes, the only value that upstream logs, so each process can continue with it. In main
        # memory because torch_xla's mesh_reduce needs two graphs, which an extraction of graphs could not create.
        running_loss = torch.tensor(float(self.running_loss.item()) if finite else torch.nan, dtype=torch.float64)
        if self._group is not None:
            dist.all_reduce(running_loss, group=self._group)
            running_loss /= dist.get_world_size(self._group)
        self._divergence.check(bool(torch.isfinite(running_loss)), "the training loss or a weight", self.state)
        self._divergence.accept(self.state.global_step - 1)
        return weights, running_loss.item()

    def state_dict_on_host(self) -> dict[str, torch.Tensor]:
        """This process's weights in main memory; tied weights stay one tensor, which transformers needs for saving."""
        xm.mark_step()
        copies: dict[int, torch.Tensor] = {}
        state: Mapping[str, torch.Tensor] = self.model.state_dict(keep_vars=True)
        for value in state.values():
            if id(value) not in copies:
                copies[id(value)] = value.detach().cpu()
        return {name: copies[id(value)] for name, value in state.items()}

    def report_and_save_summary_metrics(self) -> None:
        """Do nothing; upstream would write a file in every process with figures that log.jsonl already has."""

    def synchronize_hub_cache(self) -> None:
        """Do nothing; upstream queries the hub for the logged-in user even if nothing will be pushed."""

    def _trainable_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The parameters that the optimizer updates; each tied parameter once."""
        return ((name, value) for name, value in self.model.named_parameters() if value.requires_grad)

    @property
    def _processes(self) -> str:
        return f"{xr.world_size()} process(es) with tensor_parallel_size {self.tp_size}"

    @property
    def _optimizer_rank(self) -> int:
        """The rank in the file name of the optimizer state: under ZeRO-1 one per process, otherwise one per shard."""
        return int(xr.global_ordinal() if self.args.zero_1 else get_tensor_model_parallel_rank())


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _to_cpu(value: Any) -> Any:
    """The same nested dicts and lists with every tensor in main memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_cpu(item) for item in value)
    return value
