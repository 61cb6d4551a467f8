"""The neuron backend: optimum-neuron's NeuronTrainer on AWS Trainium, in processes that torchrun starts.

Importing this module does not import optimum-neuron, so that a machine without it can report the missing packages.
"""

import importlib.util
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch.distributed as dist
from transformers import PretrainedConfig, PreTrainedTokenizerFast, TrainerCallback
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
from neuron_sum.training.base import TrainingData, check_reporting
from neuron_sum.training.callbacks import Log, MarkComplete, Progress, StopOnDivergence, StopOnSignal
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

REQUIRED_MODULES = {
    "optimum.neuron": "optimum-neuron",
    "torch_xla": "torch_xla",
    "torch_neuronx": "torch-neuronx",
    "neuronx_distributed": "neuronx-distributed",
}
"""Modules, and the distributions that contain them; the last two are only on the package index of AWS."""
DEVICE = Path("/dev/neuron0")

COMPILER_MEMORY = 32e9
MEMORY_HINT = (
    "{} of main memory is free for compiling graphs; a compiler that needs more is killed (F137, -9). "
    "The memory per graph is not published: a summarizer of 1 GB at 1,024 tokens exceeded the 32 GB of a trn1.2xlarge "
    "(optimum-neuron#22). Shorter sequences and smaller batches need less"
)


class NeuronBackend:
    """Trains with ResumableNeuronTrainer; see base.Trainer for the contract."""

    computes_here: ClassVar[bool] = False

    def __init__(self, run: RunFolder, tokenizer: PreTrainedTokenizerFast, resume_from: Path | None) -> None:
        self.run, self.tokenizer, self.resume_from = run, tokenizer, resume_from

    @staticmethod
    def check(config: TrainConfig, processes: int | None = None) -> None:
        """Check that this machine has the Neuron SDK, and that the number of processes fits the layout."""
        check_reporting(config)
        if processes is not None or launch.is_launched():
            _reject(layout_faults(config.neuron, processes or world_size()))
        missing = [name for module, name in REQUIRED_MODULES.items() if not _is_installed(module)]
        # With PJRT_DEVICE=CPU torch_xla computes on the CPU, so that tests need no device.
        if not DEVICE.exists() and os.environ.get("PJRT_DEVICE") != "CPU":
            missing.append(f"a Neuron device ({DEVICE})")
        if missing:
            raise PlatformError(f"train.backend=neuron: this machine lacks {', '.join(missing)}", _alternatives())
        if processes is None and not dist.is_initialized() and not launch.is_launched():
            raise PlatformError(
                "train.backend=neuron runs in one process for each NeuronCore, started by torchrun",
                "add --processes 2 on a trn1.2xlarge, --processes 32 on a trn1.32xlarge; or run "
                "`torchrun --nproc_per_node 2 -m neuron_sum train RECIPE`",
            )

    @staticmethod
    def check_model(config: PretrainedConfig, recipe: Recipe) -> None:
        """Reject recipes whose training or saving optimum-neuron does not support for this model."""
        _reject(neuron_faults(config, recipe))

    @staticmethod
    def memory(
        config: PretrainedConfig, parameters: ParameterCount, shape: Shape, recipe: Recipe, processes: int
    ) -> NeuronMemory:
        """See Trainer; an unknown instance type is assumed to have NeuronCores with the memory of the known ones."""
        instance = INSTANCES.get(f"ml.{instance_type()}")
        return neuron_memory(
            config,
            parameters,
            shape,
            recipe.train,
            processes=processes,
            hosts=host_count(),
            host_available=available_to_processes(),
            core_available=instance.core_memory if instance is not None else CORE_MEMORY,
        )

    def train(
        self,
        model: "PreTrainedModel | PeftModel",
        data: TrainingData,
        plan: ShapePlan,
        config: TrainConfig,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> Path | None:
        """Train and save; return the folder of the weights, or None if only graphs were extracted."""
        # Imported here, after `check` found the packages; both import torch_xla and optimum-neuron.
        from neuron_sum.training.neuron import llama
        from neuron_sum.training.neuron import trainer as neuron_trainer

        if (free := available_memory()) < COMPILER_MEMORY and not launch.extracts_graphs():
            console.note(MEMORY_HINT.format(console.size(free)))
        if data.validation is not None:
            console.note(
                "no validation loss: optimum-neuron 0.4.5 does not evaluate during training, and doing so would need "
                "more graphs; run `neuron-sum evaluate` afterwards"
            )
        arguments = self._arguments(config, plan)  # also starts the process group if it does not exist
        neuron_model: Any = model
        if is_decoder_only(model.config):
            neuron_model = llama.load(model, self.run, arguments.trn_config)
        group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None
        batches = self._batches(model.config, data.train, plan, config)
        stop, divergence = StopOnSignal(group), StopOnDivergence(self.run, every_step=False)
        steps = config.max_steps or math.ceil(batches.steps_per_epoch * config.num_train_epochs)
        if launch.extracts_graphs():
            steps = batches.steps_per_epoch  # all steps of the extraction
            arguments.logging_steps = min(config.logging_steps, extraction.LOGGING_STEPS)
            arguments.save_steps = extraction.save_step(steps)
        arguments.max_steps = steps
        trainer = neuron_trainer.ResumableNeuronTrainer(
            batches=batches,
            total_steps=steps,
            loss=TokenLoss(shifted=is_decoder_only(model.config), label_smoothing=config.label_smoothing_factor),
            divergence=divergence,
            resume_from=self.resume_from,
            group=group,
            model=neuron_model,
            args=arguments,
            # Log adds the rate that Progress shows; an extraction of graphs has no real loss, and no checkpoint to mark
            callbacks=[
                *([] if launch.extracts_graphs() else [divergence, MarkComplete(group)]),
                Log(self.run),
                *callbacks,
                Progress(),
                stop,
            ],
        )
        trainer.remove_callback(PrinterCallback)
        use_cache = model.config.use_cache
        with stop.listening():
            trainer.train()
        model.config.use_cache = use_cache  # upstream disables it for training, and the saved config would disable it
        if launch.extracts_graphs():
            return None
        if stop.stopped and trainer.state.global_step < trainer.state.max_steps:
            raise Interrupted(
                f"stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; everything so far is saved",
                self.run.resume_command,
            )
        trainer.check_finite()
        self._save(model, trainer, group)
        return self.run.weights

    def _save(
        self,
        model: "PreTrainedModel | PeftModel",
        trainer: "ResumableNeuronTrainer",
        group: dist.ProcessGroup | None,
    ) -> None:
        """Write the weights atomically in Hugging Face's layout."""
        from neuron_sum.training.neuron import llama

        temporary = self.run.path / f".{self.run.weights.name}.tmp"
        state = None
        if is_decoder_only(model.config):
            llama.consolidate(model, trainer, self.run.path / ".shards.tmp")
        elif console.is_main_process():
            state = trainer.state_dict_on_host()
        if console.is_main_process():
            # The function of the class: upstream has replaced the object's by one that creates new Parameters.
            type(model).save_pretrained(model, temporary, state_dict=state)
            self.tokenizer.save_pretrained(temporary)
            if self.run.weights.exists():  # an earlier process was killed after this and before writing the results
                shutil.rmtree(self.run.weights)
            temporary.replace(self.run.weights)
        if group is not None:  # torch_xla's rendezvous would need an additional graph
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
            use_autocast=config.bf16,  # otherwise all weights become bf16, including those that T5 needs in fp32
            # Weights are fp32, and no checkpoint would contain its random state.
            stochastic_rounding_enabled=False,
            gradient_checkpointing=config.gradient_checkpointing,
            logging_steps=config.logging_steps,
            logging_first_step=True,
            save_strategy="steps",
            save_steps=config.save_steps,
            save_total_limit=config.save_total_limit,
            report_to="tensorboard" if "tensorboard" in config.report_to else "none",
            logging_dir=str(self.run.path / "tensorboard"),
            disable_tqdm=True,
            label_names=["labels"],
            log_level="error",
            seed=config.seed,
            zero_1=config.neuron.zero_1,
            tensor_parallel_size=config.neuron.tensor_parallel_size,
            # Upstream's Llama then ignores masks; correct if a row has one example with its padding at the end.
            recompute_causal_mask=not plan.packed,
            skip_cache_push=True,
            # enable_*_metrics stay enabled: if all are disabled, upstream fails with "Unknown metric: throughput".
        )

    def _batches(
        self, model: PretrainedConfig, data: Encoded, plan: ShapePlan, config: TrainConfig
    ) -> MicroBatches[Row]:
        """This process's share of the rows of all epochs."""
        from neuronx_distributed.parallel_layers.parallel_state import get_data_parallel_rank

        rows, collator = RowSet(data, plan), Collator(plan, model)

        def tokens(row: Row) -> Tokens:
            examples = rows[row].examples
            labels = sum(label != IGNORED for features in examples for label in features["labels"])
            return Tokens(labels, sum(len(features["input_ids"]) for features in examples))

        order = plan.rows
        if launch.extracts_graphs():
            step_rows = plan.batch_size * plan.devices * config.gradient_accumulation_steps
            extracted_rows = extraction.extraction_rows(plan.rows(0), step_rows)
            order = lambda epoch: extracted_rows  # noqa: E731
        return MicroBatches(
            rows=order,
            empty=lambda row: row._replace(examples=()),
            tokens=tokens,
            collate=lambda batch: collator([rows[row] for row in batch]),
            batch_size=plan.batch_size,
            accumulation=config.gradient_accumulation_steps,
            devices=plan.devices,
            rank=get_data_parallel_rank(),
        )


def _reject(faults: list[Fault]) -> None:
    if faults:
        raise RecipeError(
            "train.backend=neuron does not support this recipe:"
            + "".join(f"\n  {fault.field}: {fault.reason}; {fault.remedy}" for fault in faults),
            "change the recipe, or use train.backend=torch",
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def _alternatives() -> str:
    row = PLATFORMS[0]
    image = next(image for image in row.registry_images if image.stage == "train")
    return (
        "use train.backend=torch to train the same recipe on a CPU or a GPU; on a trn1 instance, use a Neuron training "
        f"image that includes optimum-neuron (SDK {row.neuron_sdk}: {image.repository}:{image.tag}); "
        "run `neuron-sum doctor` to list what this machine has"
    )
