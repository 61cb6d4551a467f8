"""What happens beside training: the progress bar, the log, the mark on a whole checkpoint, and stopping on request."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from neuron_sum import console, files
from neuron_sum.runs.folder import CHECKPOINT_MARK, RunFolder, checkpoint_sizes


class Progress(TrainerCallback):  # type: ignore[misc]
    """Shows loss, tokens a second and the time left."""

    def __init__(self) -> None:
        self._bar: console.ProgressBar | None = None
        self._detail = ""

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Puts the bar up."""
        self._bar = console.ProgressBar("training", state.max_steps, state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Takes the newest figures; Log has added tokens_per_s by then."""
        if "loss" in logs:
            self._detail = f"loss {logs['loss']:.3f} {logs.get('tokens_per_s', 0):,.0f} tokens/s"
        if "eval_loss" in logs:
            self._detail += f" validation {logs['eval_loss']:.3f}"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step, self._detail)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Takes the bar down."""
        if self._bar is not None:
            self._bar.close()


class Log(TrainerCallback):  # type: ignore[misc]
    """Appends every figure to the run's log.jsonl. A resumed run drops what was logged after its checkpoint."""

    def __init__(self, run: RunFolder) -> None:
        self._path = run.log
        self._last = (0.0, 0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Keeps the lines up to where training goes on."""
        self._last = (time.monotonic(), state.num_input_tokens_seen)
        if state.is_world_process_zero:
            kept = [entry for entry in files.read_jsonl(self._path) if entry["step"] <= state.global_step]
            files.write_text(self._path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any], **_: Any
    ) -> None:
        """Writes one line, with the rate since the line before."""
        if "loss" in logs:
            now, seen = time.monotonic(), state.num_input_tokens_seen
            logs["tokens_per_s"] = round((seen - self._last[1]) / max(now - self._last[0], 1e-9), 1)
            logs["num_input_tokens_seen"] = seen
            self._last = (now, seen)
        if state.is_world_process_zero and ("loss" in logs or "eval_loss" in logs):
            with self._path.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": state.global_step, **logs}) + "\n")


class MarkComplete(TrainerCallback):  # type: ignore[misc]
    """Marks a checkpoint once all of it is written: it is written in place, so a kill leaves a part of one.

    Args:
        group: Of all processes; None: the default one.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Called after everything, rotation included; every process writes a part of a checkpoint."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if _is_distributed():
            dist.barrier(self._group)
            # Each machine has its own processes' part; what SageMaker gives back to all of them is the whole.
            parts: list[dict[str, int]] = [{}] * dist.get_world_size(self._group)
            dist.all_gather_object(parts, checkpoint_sizes(folder), group=self._group)
            sizes = {name: size for part in reversed(parts) for name, size in part.items()}
        else:
            sizes = checkpoint_sizes(folder)
        if state.is_world_process_zero:
            files.write_json(folder / CHECKPOINT_MARK, dict(sorted(sizes.items())))


class StopOnSignal(TrainerCallback):  # type: ignore[misc]
    """Ctrl-C or SIGTERM ends the current step, saves, and stops; a second Ctrl-C stops at once.

    Args:
        group: Of all processes, over main memory, where asking the device at every step would hold it up; None: the
            default one, over the device.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.stopped = False
        self._group = group

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes the two signals over for the length of a block."""
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            # When the first process has ended, torchrun sends SIGTERM to the others, which are ending as well.
            if self.stopped and _is_distributed():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        console.note("stopping: finishing this step and saving; Ctrl-C again stops at once")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stops every process at the same step, whichever of them was told."""
        if _is_distributed():
            told = torch.tensor([float(self.stopped)], device=args.device if self._group is None else "cpu")
            dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self._group)
            self.stopped = bool(told.item())
        if self.stopped and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
