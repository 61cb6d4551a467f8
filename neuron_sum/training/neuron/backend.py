"""The neuron backend: optimum-neuron's NeuronTrainer on AWS Trainium, in processes that torchrun starts.

Importing this imports nothing of optimum-neuron, so that a machine without it can say what is missing.
"""

import importlib.util
import math
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch.distributed as dist
from transformers import PretrainedConfig, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback

from neuron_sum import console
from neuron_sum.data.encoding import IGNORED, Encoded
from neuron_sum.data.layouts import Row, Shape
from neuron_sum.data.rows import Collator, RowSet
from neuron_sum.data.shapes import ShapePlan
from neuron_sum.errors import Interrupted, PlatformError, RecipeError
from neuron_sum.models.base import ParameterCount, is_decoder_only
from neuron_sum.platform.cpu import available_memory
from neuron_sum.platform.machine import instance_type
from neuron_sum.platform.matrix import CORE_MEMORY, INSTANCES, PLATFORMS
from neuron_sum.recipes.schema import Recipe, TrainConfig
from neuron_sum.runs.folder import RunFolder
from neuron_sum.training import launch
from neuron_sum.training.base import TrainingData
from neuron_sum.training.callbacks import Log, MarkComplete, Progress, StopOnSignal
from neuron_sum.training.loss import TokenLoss
from neuron_sum.training.neuron import extraction
from neuron_sum.training.neuron.limits import Fault, layout_faults, neuron_faults
from neuron_sum.training.neuron.memory import NeuronMemory, available_to_processes, neuron_memory
from neuron_sum.training.neuron.micro_batches import MicroBatches, Tokens
from neuron_sum.training.processes import host_count, world_size

if TYPE_CHECKING:
    from optimum.neuron import NeuronTrainingArguments
    from peft import PeftModel
    from transformers import PreTrainedModel

    from neuron_sum.training.neuron.trainer import ResumableNeuronTrainer

NEEDED = {
    "optimum.neuron": "optimum-neuron",
    "torch_xla": "torch_xla",
    "torch_neuronx": "torch-neuronx",
    "neuronx_distributed": "neuronx-distributed",
}
"""Modules, and the distributions that bring them; the last two are on AWS's own package index only."""
DEVICE = Path("/dev/neuron0")

COMPILER_MEMORY = 32e9
MEMORY_HINT = (
    "{} of main memory is free, and graphs are compiled in it; a compiler that runs out of it is killed (F137, -9). "
    "How much a graph needs is not published: a summarizer of 1 GB at 1,024 tokens ran out of a trn1.2xlarge's 32 GB "
    "(optimum-neuron#22). Shorter sequences and smaller batches need less"
)


class NeuronBackend:
    """Trains with ResumableNeuronTrainer; see base.Trainer for the contract."""

    computes_here: ClassVar[bool] = False

    def __init__(self, run: RunFolder, tokenizer: PreTrainedTokenizerFast, resume_from: Path | None) -> None:
        self.run, self.tokenizer, self.resume_from = run, tokenizer, resume_from

    @staticmethod
    def check(config: TrainConfig, processes: int | None = None) -> None:
        """Finds out whether this is a machine with the Neuron SDK, and one process of as many as the layout takes."""
        if processes is not None or launch.is_launched():
            _refuse(layout_faults(config.neuron, processes or world_size()))
        missing = [name for module, name in NEEDED.items() if not _is_there(module)]
        # With PJRT_DEVICE=CPU torch_xla computes on the CPU, which is how this is tested without a device.
        if not DEVICE.exists() and os.environ.get("PJRT_DEVICE") != "CPU":
            missing.append(f"a Neuron device ({DEVICE})")
        if missing:
            raise PlatformError(f"train.backend=neuron needs what this machine lacks: {', '.join(missing)}", _ways_on())
        if processes is None and not dist.is_initialized() and not launch.is_launched():
            raise PlatformError(
                "train.backend=neuron runs in one process for each NeuronCore, started by torchrun",
                "add --processes 2 on a trn1.2xlarge, --processes 32 on a trn1.32xlarge; or "
                "torchrun --nproc_per_node 2 -m neuron_sum train RECIPE",
            )

    @staticmethod
    def check_model(config: PretrainedConfig, recipe: Recipe) -> None:
        """Refuses what optimum-neuron cannot train with this model, or cannot save."""
        _refuse(neuron_faults(config, recipe))

    @staticmethod
    def memory(
        config: PretrainedConfig, parameters: ParameterCount, shape: Shape, train: TrainConfig, processes: int
    ) -> NeuronMemory:
        """What NeuronCores and the host have is the instance's; an unknown one has cores like those that are known."""
        instance = INSTANCES.get(f"ml.{instance_type()}")
        return neuron_memory(
            config,
            parameters,
            shape,
            train,
            processes=processes,
            hosts=host_count(),
            host_available=available_to_processes(),
            core_available=instance.core_memory if instance is not None else CORE_MEMORY,
        )

    def train(
        self, model: "PreTrainedModel | PeftModel", data: TrainingData, plan: ShapePlan, config: TrainConfig
    ) -> Path | None:
        """Trains and saves; returns the folder of the weights, or None where only graphs were extracted."""
        # Imported here, because only now is it known to be there; both import torch_xla and optimum-neuron.
        from neuron_sum.training.neuron import llama
        from neuron_sum.training.neuron import trainer as neuron_trainer

        if (free := available_memory()) < COMPILER_MEMORY and not launch.extracts_graphs():
            console.note(MEMORY_HINT.format(console.size(free)))
        if data.validation is not None:
            console.note(
                "no validation loss: optimum-neuron 0.4.5 does not evaluate while it trains, and it would take further "
                "graphs; `neuron-sum evaluate` does, afterwards"
            )
        arguments = self._arguments(config, plan)  # starts the process group, where nobody has
        trained: Any = model
        if is_decoder_only(model.config):
            trained = llama.load(model, self.run, arguments.trn_config)
        group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None
        batches = self._batches(model.config, data.train, plan, config)
        stop = StopOnSignal(group)
        steps = config.max_steps or math.ceil(batches.steps_per_epoch * config.num_train_epochs)
        if launch.extracts_graphs():
            steps = batches.steps_per_epoch  # all that it has
            arguments.logging_steps = min(config.logging_steps, extraction.LOGGING_STEPS)
            arguments.save_steps = extraction.save_step(steps)
        arguments.max_steps = steps
        trainer = neuron_trainer.ResumableNeuronTrainer(
            batches=batches,
            total_steps=steps,
            loss=TokenLoss(is_decoder_only(model.config), config.label_smoothing_factor),
            resume_from=self.resume_from,
            group=group,
            model=trained,
            args=arguments,
            # Log adds what Progress shows; an extraction of graphs saves nothing that could be marked
            callbacks=[Log(self.run), Progress(), *([] if launch.extracts_graphs() else [MarkComplete(group)]), stop],
        )
        trainer.remove_callback(PrinterCallback)
        use_cache = model.config.use_cache
        with stop.listening():
            trainer.train()
        model.config.use_cache = use_cache  # upstream switches it off for training, and it would be saved so
        if launch.extracts_graphs():
            return None
        if stop.stopped and trainer.state.global_step < trainer.state.max_steps:
            raise Interrupted(
                f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; everything so far is saved",
                self.run.resume_command,
            )
        self._save(model, trainer, group)
        return self.run.weights

    def _save(
        self,
        model: "PreTrainedModel | PeftModel",
        trainer: "ResumableNeuronTrainer",
        group: dist.ProcessGroup | None,
    ) -> None:
        """The weights in Hugging Face's layout, whole or not at all."""
        from neuron_sum.training.neuron import llama

        temporary = self.run.path / f".{self.run.weights.name}.tmp"
        state = None
        if is_decoder_only(model.config):
            llama.consolidate(model, trainer, self.run.path / ".shards.tmp")
        elif console.is_main_process():
            state = trainer.state_dict_on_host()
        if console.is_main_process():
            # The class's own function: upstream has replaced the object's by one that gives it new Parameters.
            type(model).save_pretrained(model, temporary, state_dict=state)
            self.tokenizer.save_pretrained(temporary)
            if self.run.weights.exists():  # a kill came after this and before the run's results
                shutil.rmtree(self.run.weights)
            temporary.replace(self.run.weights)
        if group is not None:  # torch_xla's rendezvous would take a graph of its own
            dist.barrier(group)

    def _arguments(self, config: TrainConfig, plan: ShapePlan) -> "NeuronTrainingArguments":
        from optimum.neuron import NeuronTrainingArguments

        return NeuronTrainingArguments(
            output_dir=str(self.run.checkpoints),
            learning_rate=config.learning_rate,
            per_device_train_batch_size=config.per_device_train_batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            weight_decay=config.weight_decay,
            warmup_ratio=config.warmup_ratio,
            lr_scheduler_type=config.lr_scheduler_type,
            max_grad_norm=config.max_grad_norm,
            bf16=config.bf16,
            use_autocast=config.bf16,  # else all weights become bf16, those too that T5 keeps in fp32
            # Weights are fp32, and its random state would be in no checkpoint.
            stochastic_rounding_enabled=False,
            gradient_checkpointing=config.gradient_checkpointing,
            logging_steps=config.logging_steps,
            logging_first_step=True,
            save_strategy="steps",
            save_steps=config.save_steps,
            save_total_limit=config.save_total_limit,
            report_to=list(config.report_to) or "none",
            logging_dir=str(self.run.path / "tensorboard"),
            disable_tqdm=True,
            label_names=["labels"],
            log_level="error",
            seed=config.seed,
            zero_1=config.neuron.zero_1,
            tensor_parallel_size=config.neuron.tensor_parallel_size,
            # Upstream's Llama then ignores masks; right where a row holds one example, whose padding is behind it.
            recompute_causal_mask=not plan.packed,
            skip_cache_push=True,
            # enable_*_metrics stay on: with all of them off, upstream fails with "Unknown metric: throughput".
        )

    def _batches(
        self, model: PretrainedConfig, data: Encoded, plan: ShapePlan, config: TrainConfig
    ) -> MicroBatches[Row]:
        """The rows of all epochs, this process's share."""
        from neuronx_distributed.parallel_layers.parallel_state import get_data_parallel_rank

        rows, collator = RowSet(data, plan), Collator(plan, model)

        def tokens(row: Row) -> Tokens:
            examples = rows[row].examples
            labels = sum(label != IGNORED for features in examples for label in features["labels"])
            return Tokens(labels, sum(len(features["input_ids"]) for features in examples))

        order = plan.rows
        if launch.extracts_graphs():
            step_rows = plan.batch_size * plan.devices * config.gradient_accumulation_steps
            few = extraction.extraction_rows(plan.rows(0), step_rows)
            order = lambda epoch: few  # noqa: E731
        return MicroBatches(
            rows=order,
            empty=lambda row: row._replace(examples=()),
            tokens=tokens,
            collate=lambda some: collator([rows[row] for row in some]),
            batch_size=plan.batch_size,
            accumulation=config.gradient_accumulation_steps,
            devices=plan.devices,
            rank=get_data_parallel_rank(),
        )


def _refuse(faults: list[Fault]) -> None:
    if faults:
        raise RecipeError(
            "what train.backend=neuron cannot do:"
            + "".join(f"\n  {fault.field}: {fault.why}; {fault.remedy}" for fault in faults),
            "change the recipe, or train.backend=torch",
        )


def _is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent package
        return False


def _ways_on() -> str:
    row = PLATFORMS[0]
    image = next(image for image in row.registry_images if image.stage == "train")
    return (
        "train.backend=torch trains the same recipe on a CPU or a GPU; on a trn1 instance, a Neuron training image "
        f"with optimum-neuron in it has what is missing (SDK {row.neuron_sdk}: {image.repository}:{image.tag}); "
        "`neuron-sum doctor` says what this machine has"
    )
