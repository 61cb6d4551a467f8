"""neuron-sum: take a dialogue-summarization model from data to a SageMaker endpoint on AWS chips with one recipe.

Importing this package imports nothing heavy: each name of the Python API is imported when it is first used, and each
module imports its dependencies when they are used. docs/python.md describes the API, with `compile.compile_run`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuron_sum.data.sources import load_dataset
    from neuron_sum.evaluation.api import Report, Summarizer, compare, evaluate
    from neuron_sum.recipes.loading import load_recipe
    from neuron_sum.training.api import train

__version__ = "0.2.0"
__all__ = ["Report", "Summarizer", "compare", "evaluate", "load_dataset", "load_recipe", "train"]

_MODULES = {
    "Report": "neuron_sum.evaluation.api",
    "Summarizer": "neuron_sum.evaluation.api",
    "compare": "neuron_sum.evaluation.api",
    "evaluate": "neuron_sum.evaluation.api",
    "load_dataset": "neuron_sum.data.sources",
    "load_recipe": "neuron_sum.recipes.loading",
    "train": "neuron_sum.training.api",
}

if not TYPE_CHECKING:  # type checkers see the names above, and no others

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
