"""Trains with the neuron backend on XLA's CPU device, and records each step: python observe.py CASES FOLDER

CASES is a JSON list of {name, recipe, overrides, and changes to the run}; FOLDER gets a run folder for each, and
NAME.json with an entry for every optimizer step, NAME-compiled.json with the number of graphs and of input shapes.
tests/library/test_neuron.py starts it, and reads its files.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import stand_ins


def main(cases: list[dict[str, Any]], folder: Path) -> None:
    stand_ins.install()
    from neuron_sum.errors import DivergedError, Interrupted
    from neuron_sum.recipes.loading import load_recipe
    from neuron_sum.recipes.schema import ShapesConfig
    from neuron_sum.training.neuron import trainer as neuron_trainer
    from neuron_sum.training.train import train

    own_trainer = neuron_trainer.ResumableNeuronTrainer
    for case in cases:
        steps: list[dict[str, Any]] = []
        shapes: set[str] = set()
        neuron_trainer.ResumableNeuronTrainer = watched(own_trainer, case, steps, shapes)
        recipe = load_recipe(case["recipe"], case.get("overrides", []))
        if case.get("dynamic"):  # a recipe for this backend cannot set this
            any_shape = recipe.train.model_copy(
                update={"shapes": ShapesConfig(plan="dynamic"), "group_by_length": False}
            )
            recipe = recipe.model_copy(update={"train": any_shape})
        if case.get("extract_first"):
            os.environ["NEURON_EXTRACT_GRAPHS_ONLY"] = "1"
            train(recipe, folder / f"extraction-of-{case['name']}")
            del os.environ["NEURON_EXTRACT_GRAPHS_ONLY"]
            steps.clear()
            shapes.clear()
        before = compiled()
        try:
            train(recipe, folder / case.get("run", case["name"]), resume=case.get("resume", False))
        except Interrupted:
            assert "stop_after" in case
        except DivergedError as error:
            assert "diverges" in case
            (folder / f"{case['name']}-error.txt").write_text(error.message)
        (folder / f"{case['name']}.json").write_text(json.dumps(steps))
        told = {"graphs": compiled() - before, "shapes": len(shapes)}
        (folder / f"{case['name']}-compiled.json").write_text(json.dumps(told))


def compiled() -> int:
    """The number of graphs that this process has compiled."""
    import torch_xla.debug.metrics as metrics

    return (metrics.metric_data("CompileTime") or (0,))[0]


def watched(trainer: type, case: dict[str, Any], steps: list[dict[str, Any]], shapes: set[str]) -> type:
    """The trainer, which records its inputs, optimizer and compiler between steps, and applies the case's changes."""
    from optimum.neuron import NeuronTrainer
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, model: Any, optimizer: Any, **_: Any) -> None:
            """Runs between steps, when everything is computed, so that recording adds no graph."""
            known = {id(value) for group in optimizer.param_groups for value in group["params"]}
            trained = [value for value in model.parameters() if value.requires_grad]
            steps.append(
                {
                    "done": state.global_step,
                    "known": sum(id(value) in known for value in trained),
                    "trained": len(trained),
                    "compiled": compiled(),
                    "sum": float(sum(value.detach().cpu().double().abs().sum() for value in trained)),
                }
            )

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == case.get("stop_after"):
                os.kill(os.getpid(), signal.SIGTERM)

    class Watched(trainer):
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "callbacks": [*options["callbacks"], Watch()]})

        def training_step(self, model: Any, inputs: dict[str, Any], **options: Any) -> Any:
            shapes.add(str(sorted((name, tuple(value.shape)) for name, value in inputs.items())))
            return super().training_step(model, inputs, **options)

    if case.get("upstream_save"):
        Watched._save_checkpoint = NeuronTrainer._save_checkpoint
    return Watched


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
