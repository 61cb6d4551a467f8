"""optimum-neuron's NeuronTrainer, resumable, with one loss for every model and saving that does no harm.

Written against optimum-neuron 0.4.5. Importing this imports torch_xla, optimum-neuron and neuronx-distributed.
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
from neuron_sum.training.loss import TokenLoss
from neuron_sum.training.neuron.micro_batches import Batch, MicroBatches

WEIGHTS, OPTIMIZER, SCHEDULER, LOOP = "weights-{:02d}.safetensors", "optimizer-{:03d}.pt", "scheduler.pt", "loop.json"
"""What a training checkpoint holds beside transformers' trainer_state.json."""


class CountProgress(TrainerCallback):  # type: ignore[misc]
    """Says how far the run is: upstream counts no tokens, and takes what is left of a run for its first epoch.

    Args:
        batches: The whole run.
    """

    def __init__(self, batches: MicroBatches[Any]) -> None:
        self._batches = batches

    def on_step_end(
        self, args: NeuronTrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Comes before all other callbacks, so that log and checkpoint have it."""
        state.epoch = self._batches.epochs(state.global_step)
        state.num_input_tokens_seen += self._batches.tokens(state.global_step - 1).inputs


class ResumableNeuronTrainer(NeuronTrainer):  # type: ignore[misc]
    """Overrides, each for a reason told at its place; the training loop itself is upstream's, unchanged.

    Upstream refuses resume_from_checkpoint and begins at epoch 0. So what is left of the whole run is given to it as
    one epoch of micro-batches.

    Args:
        batches: The whole run.
        total_steps: Optimizer steps of the whole run.
        loss: Of a micro-batch.
        resume_from: A checkpoint that this class wrote.
        group: Of all processes, over main memory; None where there is one. MarkComplete waits in it for a whole save.
        **options: NeuronTrainer's own.

    Raises:
        RunError: If the checkpoint was written by another number of processes.
    """

    def __init__(
        self,
        *,
        batches: MicroBatches[Any],
        total_steps: int,
        loss: TokenLoss,
        resume_from: Path | None,
        group: dist.ProcessGroup | None,
        **options: Any,
    ) -> None:
        options["callbacks"] = [CountProgress(batches), *options.get("callbacks", [])]
        super().__init__(**options)
        self._batches, self._total_steps, self._loss, self._resume_from = batches, total_steps, loss, resume_from
        self._group, self._micro_batch, self._learning_rate = group, 0, 0.0
        self._loop: dict[str, Any] = {}
        if resume_from is not None:
            self._loop = files.read_json(resume_from / LOOP)
            if self._loop["processes"] != self._processes:
                raise RunError(
                    f"{resume_from.name} was written by {self._loop['processes']}, and these are {self._processes}",
                    "go on with as many, started by torchrun as before",
                )
            saved = load_file(resume_from / WEIGHTS.format(get_tensor_model_parallel_rank()))
            own = dict(self._trained())
            if saved.keys() != own.keys():
                raise RunError(f"{resume_from} does not hold the weights that this recipe trains", "start anew")
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(saved[name])

    # What the loop is given

    def get_train_dataloader(self) -> DataLoader[Batch]:
        """What is left of the run; upstream would shuffle by the global random state, and anew in each process.

        It has a generator of its own, for a DataLoader otherwise draws a number from the training's random state.
        """
        rest = self._batches.between(self._loop.get("global_step", 0), self._total_steps)
        return DataLoader(rest, batch_size=None, generator=torch.Generator())

    def set_initial_training_values(
        self, args: NeuronTrainingArguments, dataloader: DataLoader[Batch], total_train_batch_size: int
    ) -> tuple[int, int, int, int, bool, int, int]:
        """One epoch of what is left; max_steps counts from the run's beginning, for the learning rate and the log."""
        rest = len(dataloader)
        return 1, rest, rest, rest, False, rest, self._total_steps

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, *args: Any, **kwargs: Any
    ) -> tuple[list[Batch], torch.Tensor]:
        """Adds the label tokens of the whole step, over all processes.

        It is a tensor on the device, so that the graph has it as an input and is the same for every number. Divided by
        the data parallel processes, for upstream takes the mean of their gradients.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, *args, **kwargs)
        self._micro_batch = self.state.global_step * self.args.gradient_accumulation_steps
        labels = self._batches.tokens(self.state.global_step).labels
        return batches, torch.tensor(labels / self.dp_size, dtype=torch.float32).to(xm.xla_device())

    def get_decay_parameter_names(self, model: torch.nn.Module) -> list[str]:
        """As transformers' Trainer has it. Upstream's list of names misses T5's `layer_norm`, which it would decay."""
        names: list[str] = transformers.Trainer.get_decay_parameter_names(self, model)
        return names

    # A step

    def training_step(
        self, model: torch.nn.Module, inputs: Batch, num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Makes dropout a function of seed, micro-batch and data parallel rank alone, so that a resumed run repeats it.

        torch_xla's own random state moves on with every mark_step, of which logging and saving make some.
        """
        what = f"{self.args.seed} {self._micro_batch} {get_data_parallel_rank()}"
        seed = int.from_bytes(hashlib.sha256(what.encode()).digest()[:4], "big")
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
        """The same loss as the torch backend's.

        Upstream passes `reduction="sum"` to whatever takes **kwargs: PEFT's models then fail (T5's forward takes no
        such word), and a Hugging Face Llama takes it in silence and is divided by the tokens twice.
        """
        features = {name: value for name, value in inputs.items() if name != "labels"}
        with self.autocast_smart_context_manager(), self.metrics_collector.time_metric("forward_pass", inputs=inputs):
            if self.tp_size > 1:  # each process has a part of the vocabulary, and only the model's own loss knows it
                outputs = model(**inputs, reduction="sum")
                loss = outputs["loss"] / num_items_in_batch
            else:
                outputs = model(**features)
                loss = self._loss(outputs, inputs["labels"], num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _get_last_learning_rate(self) -> float:
        """For the log: the rate of the step that is logged. Upstream's is the next one's."""
        return float(self._learning_rate)

    # Saving and going on

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """Also sets the counters of a resumed run: between here and on_train_begin, upstream touches them no more."""
        super().create_optimizer_and_scheduler(num_training_steps)
        if self._resume_from is not None:
            saved = TrainerState.load_from_json(str(self._resume_from / TRAINER_STATE_NAME))
            for name in ("global_step", "num_input_tokens_seen", "log_history"):
                setattr(self.state, name, getattr(saved, name))

    def setup_training(self, *args: Any, **kwargs: Any) -> None:
        """Loads what upstream has just made: moments, learning rate, and the loss that is not logged yet."""
        super().setup_training(*args, **kwargs)
        if self._resume_from is not None:
            self.optimizer.load_state_dict(_load(self._resume_from / OPTIMIZER.format(self._optimizer_rank)))
            self.lr_scheduler.load_state_dict(_load(self._resume_from / SCHEDULER))
            self.state.epoch = self._batches.epochs(self.state.global_step)
            self.global_step_last_logged = self._loop["last_logged"]
            self.running_loss += self._loop["running_loss"]
            xm.mark_step()

    def _save_checkpoint(self) -> None:
        """Writes what training goes on from, and leaves the model's Parameters alone.

        Upstream's saving goes through load_state_dict(assign=True), which gives a vanilla model new Parameters that the
        optimizer does not know: training goes on without an error, and nothing is learned any more. It also leaves
        pickles behind, and a file of arguments that recipe.yaml says better.
        """
        if launch.extracts_graphs():
            # The device's part alone: what comes from it under neuron_parallel_compile is no data.
            _to_cpu([parameter for _, parameter in self._trained()])
            _to_cpu(self.optimizer.state_dict())
            self.running_loss.item()
            return
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        if get_data_parallel_rank() == 0:
            weights = {name: parameter.detach().cpu() for name, parameter in self._trained()}
            save_file(weights, folder / WEIGHTS.format(get_tensor_model_parallel_rank()))
        if get_data_parallel_rank() == 0 or self.args.zero_1:
            torch.save(_to_cpu(self.optimizer.state_dict()), folder / OPTIMIZER.format(self._optimizer_rank))
        # The mean over the processes: upstream logs no other, so that each may go on with it. In main memory, for
        # torch_xla's mesh_reduce takes two graphs, which an extraction of graphs could not have made.
        running_loss = torch.tensor(float(self.running_loss.item()), dtype=torch.float64)
        if self._group is not None:
            dist.all_reduce(running_loss, group=self._group)
            running_loss /= dist.get_world_size(self._group)
        if self.is_logging_process():
            torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER)
            self.state.save_to_json(str(folder / TRAINER_STATE_NAME))
            loop = {
                "global_step": self.state.global_step,
                "last_logged": self.global_step_last_logged,
                "running_loss": running_loss.item(),
                "processes": self._processes,
            }
            files.write_json(folder / LOOP, loop)
            self._rotate_checkpoints(use_mtime=False, output_dir=self.args.output_dir)

    def state_dict_on_host(self) -> dict[str, torch.Tensor]:
        """This process's weights in main memory; tied ones stay one tensor, as transformers' saving needs it."""
        xm.mark_step()
        copies: dict[int, torch.Tensor] = {}
        state: Mapping[str, torch.Tensor] = self.model.state_dict(keep_vars=True)
        for value in state.values():
            if id(value) not in copies:
                copies[id(value)] = value.detach().cpu()
        return {name: copies[id(value)] for name, value in state.items()}

    def report_and_save_summary_metrics(self) -> None:
        """Upstream would write a training_summary_metrics.json, in every process; log.jsonl has its figures."""

    def synchronize_hub_cache(self) -> None:
        """Upstream asks the hub who is logged in, even where nothing is to be pushed."""

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """What the optimizer changes; each tied parameter once."""
        return ((name, value) for name, value in self.model.named_parameters() if value.requires_grad)

    @property
    def _processes(self) -> str:
        return f"{xr.world_size()} process(es) with tensor_parallel_size {self.tp_size}"

    @property
    def _optimizer_rank(self) -> int:
        """Whose optimizer state this is: under ZeRO-1 this process's, else that of all with the same shard."""
        return int(xr.global_ordinal() if self.args.zero_1 else get_tensor_model_parallel_rank())


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _to_cpu(value: Any) -> Any:
    """The same nest of dicts and lists with every tensor in main memory."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_cpu(item) for item in value)
    return value
