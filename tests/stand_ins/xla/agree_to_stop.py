"""Two processes of torch_xla's process group, one of which gets a signal: python -m torch.distributed.run THIS FOLDER

Its collectives on XLA's CPU device do not reach the other process, and its barrier waits for none; the callbacks use
a separate group for both. No stand-in is needed.
"""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch.distributed as dist
import torch_xla.distributed.xla_backend  # noqa: F401  (brings the backend "xla")
from transformers import TrainerControl, TrainerState

from neuron_sum.training.callbacks import MarkComplete, StopOnSignal

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    dist.init_process_group("xla")
    group = dist.new_group(backend="gloo")
    rank = dist.get_rank()
    stop, control = StopOnSignal(group), TrainerControl()
    stop.requested = rank == 1
    state = TrainerState(global_step=3, max_steps=9, is_world_process_zero=rank == 0)
    stop.on_step_end(SimpleNamespace(device="xla"), state, control)
    assert control.should_save and control.should_training_stop
    part = folder / "checkpoint-3" / f"part-{rank}"
    part.parent.mkdir(exist_ok=True)
    while rank == 1 and not part.with_name("part-0").exists():  # the marker file has to wait for the slower of the two
        time.sleep(0.002)
    part.touch()
    MarkComplete(group).on_save(SimpleNamespace(output_dir=str(folder)), state, control)
    if rank == 0:
        assert (folder / "checkpoint-3" / "complete").exists() and (folder / "checkpoint-3" / "part-1").exists()
    print("agreed", rank, flush=True)
