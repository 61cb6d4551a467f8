"""Callbacks during training: progress bar, log, marking complete checkpoints, stopping on request and on divergence."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from neuron_sum import console, files
from neuron_sum.errors import DivergedError
from neuron_sum.runs.folder import CHECKPOINT_MARK, RunFolder, checkpoint_sizes, step_of
from neuron_sum.runs.tracking import MlflowRun

FINITE = {"loss": "the training loss", "grad_norm": "the norm of the gradients", "eval_loss": "the validation loss"}
"""The logged figures that must be finite, and their names in an error."""


class Progress(TrainerCallback):  # type: ignore[misc]
    """Shows loss, tokens per second and the remaining time."""

    def __init__(self) -> None:
        self._bar: console.ProgressBar | None = None
        self._detail = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Create the bar."""
        self._bar = console.ProgressBar("training", state.max_steps, state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Store the newest figures; Log has already added tokens_per_s."""
        if "loss" in logs:
            self._detail = f"loss {logs['loss']:.3f} {logs.get('tokens_per_s', 0):,.0f} tokens/s"
        if "eval_loss" in logs:
            self._detail += f" validation {logs['eval_loss']:.3f}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step, self._detail)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


class Log(TrainerCallback):  # type: ignore[misc]
    """Appends every figure to the run's log.jsonl. A resumed run drops the lines logged after its checkpoint."""

    def __init__(self, run: RunFolder) -> None:
        self._run, self._path = run, run.log
        self._last = (0.0, 0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keep the lines up to the step from which training continues."""
        self._last = (time.monotonic(), state.num_input_tokens_seen)
        if state.is_world_process_zero:
            entries = [entry for entry in self._run.read_log() if entry["step"] <= state.global_step]
            files.write_text(self._path, "".join(files.to_json(entry) + "\n" for entry in entries))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Write one line, with the rate since the previous line."""
        if "loss" in logs:
            now, tokens = time.monotonic(), state.num_input_tokens_seen
            logs["tokens_per_s"] = round((tokens - self._last[1]) / max(now - self._last[0], 1e-9), 1)
            logs["num_input_tokens_seen"] = tokens
            self._last = (now, tokens)
        if state.is_world_process_zero and ("loss" in logs or "eval_loss" in logs):
            with self._path.open("a", encoding="utf-8") as log:
                log.write(files.to_json({"step": state.global_step, **logs}) + "\n")


class MlflowLog(TrainerCallback):  # type: ignore[misc]
    """Sends every line of log.jsonl to MLflow; called after Log."""

    def __init__(self, mlflow_run: MlflowRun) -> None:
        self._mlflow_run = mlflow_run

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Create the MLflow run, or continue that of a resumed run."""
        self._mlflow_run.start()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Send the line that Log has written."""
        if "loss" in logs or "eval_loss" in logs:
            self._mlflow_run.log({"step": state.global_step, **logs})


class MarkComplete(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint when it is complete: it is written in place, so a kill leaves an incomplete one.

    Args:
        group: The group of all processes; None for the default group.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called last, after rotation; every process writes a part of a checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if _is_distributed():
            dist.barrier(self._group)
            # Each machine has only its processes' part; SageMaker restores the whole checkpoint on all of them.
            parts: list[dict[str, int]] = [{}] * dist.get_world_size(self._group)
            dist.all_gather_object(parts, checkpoint_sizes(folder), group=self._group)
            sizes = {name: size for part in reversed(parts) for name, size in part.items()}
        else:
            sizes = checkpoint_sizes(folder)
        if state.is_world_process_zero:
            files.write_json(folder / CHECKPOINT_MARK, dict(sorted(sizes.items())))


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Finishes the current step, saves and stops on Ctrl-C or SIGTERM; a second Ctrl-C stops immediately.

    Args:
        group: The group of all processes, over main memory, for devices that a query at every step would slow down;
            None for the default group, over the device.

    Attributes:
        requested: Whether this process received a signal.
        stopped: Whether the processes have agreed to stop.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.requested = self.stopped = False
        self._group = group

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle the two signals for the duration of a block; only the main thread can, and only it receives them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            # As soon as the first process has ended, torchrun sends SIGTERM to the others, which are also ending.
            if (self.requested or self.stopped) and _is_distributed():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _request_stop(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        console.note("stopping: finishing this step and saving; press Ctrl-C again to stop immediately")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop every process at the same step, whichever of them received the signal.

        A signal during the exchange takes effect at the next step: the other processes do not know of it yet.
        """
        self.stopped = self.requested
        if _is_distributed():
            stopped = torch.tensor([float(self.stopped)], device=args.device if self._group is None else "cpu")
            dist.all_reduce(stopped, op=dist.ReduceOp.MAX, group=self._group)
            self.stopped = bool(stopped.item())
        if self.stopped and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


class StopOnDivergence(TrainerCallback):  # type: ignore[misc]
    """Stops training if a loss, a gradient or a weight is not finite, and keeps the last good checkpoint.

    A checkpoint is good after a step from its weights was finite: the weights before this may be finite, but useless.

    Args:
        run: The run that is trained.
        every_step: Whether the trainer checks the loss of every step, and not only the logged ones.
    """

    def __init__(self, run: RunFolder, *, every_step: bool) -> None:
        self._run, self._every_step, self._good_until = run, every_step, -1

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called with the step of the checkpoint that training continues from, which counts as good only later."""
        self._good_until = state.global_step - 1

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The step from the weights before it was finite."""
        if self._every_step:
            self.accept(state.global_step - 1)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Check every figure; called before Log writes it."""
        for name in FINITE.keys() & logs.keys():
            self.check(math.isfinite(logs[name]), FINITE[name], state)
        if "loss" in logs:
            self.accept(state.global_step - 1)

    def accept(self, step: int) -> None:
        """The weights after this step were good: the loss that they led to is finite."""
        self._good_until = max(step, self._good_until)

    def check(self, finite: bool, what: str, state: TrainerState) -> None:
        """Stop if a figure is not finite.

        Args:
            finite: Whether it is finite.
            what: The name of the figure.
            state: The state of the training.

        Raises:
            DivergedError: If it is not; checkpoints that are not known to be good lose their mark before.
        """
        if finite:
            return
        marked = {step_of(folder): folder for folder in self._run.marked_checkpoints()}
        if console.is_main_process():
            for step, folder in marked.items():
                if step > self._good_until:
                    (folder / CHECKPOINT_MARK).unlink(missing_ok=True)
        good = next((step for step in marked if step <= self._good_until), None)
        kept = "no checkpoint was saved before" if good is None else f"the last good checkpoint is {marked[good]}"
        if state.global_step == 0:
            hint = "check the weights of the base model"
        else:
            hint = "lower train.learning_rate, or raise train.warmup_ratio, and restart with --overwrite"
        if good is not None:
            hint += f"; `{self._run.resume_command}` continues from step {good} with the same settings"
        raise DivergedError(
            f"training diverged: {what} is not a finite number after step {state.global_step} of {state.max_steps} "
            f"(train.learning_rate = {self._run.recipe.train.learning_rate:g}); {kept}",
            hint,
        )


def all_finite(model: torch.nn.Module) -> bool:
    """Whether every trained weight in this process is finite; of a sharded weight, this process's part."""
    trained = (weight for weight in model.parameters() if weight.requires_grad)
    parts = (weight.to_local() if isinstance(weight, DTensor) else weight for weight in trained)
    return all(bool(torch.isfinite(part).all()) for part in parts)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
