"""serving.properties: what DJL Serving and our handler are told about a model, made from its artifact and its recipe.

Shapes, prompt and adapters stand in the artifact's manifest and nowhere else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from neuron_sum.artifact import Artifact
from neuron_sum.errors import RecipeError
from neuron_sum.recipes.schema import ServeConfig

LOADING_TIMEOUT_S = 900
"""For reading weights and running every graph once; DJL's own 240 s are too few for a large model on a slow disk."""

RETRY_THRESHOLD = 1
"""Failures of the worker in a row that are forgiven: it may die, but if it then does not come back the model has failed
for good, and /ping says so. DJL's own 0 means: at the first."""

FILE = "serving.properties"
ARTIFACT = "artifact"
"""The artifact's folder in a model's folder."""

PREFIX = "option.serve_"


def render(artifact: Artifact, limits: ServeConfig) -> str:
    """The file of a model in our layout."""
    values: dict[str, Any] = {
        "engine": "Python",
        # One worker: it batches over all requests, and a second would hold a second copy of the weights.
        "minWorkers": 1,
        "maxWorkers": 1,
        "job_queue_size": limits.queue_size + limits.max_items,
        "retry_threshold": RETRY_THRESHOLD,
        "option.entryPoint": "serving.model",
        "option.async_mode": "true",
        "option.model_loading_timeout": LOADING_TIMEOUT_S,
        "option.predict_timeout": LOADING_TIMEOUT_S,
        "option.enable_lora": "true" if artifact.manifest.adapters is not None else "false",
        **{PREFIX + name: value for name, value in limits.model_dump(mode="json").items()},
    }
    lines = (f"{name}={str(value).lower() if isinstance(value, bool) else value}\n" for name, value in values.items())
    return "".join(lines)


def read(path: Path) -> dict[str, str]:
    """A file that `render` wrote."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def read_limits(options: Mapping[str, str]) -> ServeConfig:
    """The limits from the keys of the file.

    Raises:
        RecipeError: For a value that does not hold.
    """
    given = {name.removeprefix(PREFIX): value for name, value in options.items() if name.startswith(PREFIX)}
    try:
        return ServeConfig.model_validate(given, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"serving.properties: {PREFIX}{first['loc'][0]}: {first['msg']}", "package again") from error


def server_environment(limits: ServeConfig) -> dict[str, str]:
    """What only the server itself can be told, by its environment."""
    return {
        "SERVING_MAX_REQUEST_SIZE": str(limits.max_body_bytes),
        "SERVING_PROMETHEUS": "true",
        "DJL_OFFLINE": "true",
        "ALLOW_REQUEST_HANDLER_OVERRIDE": "false",
        "OPT_OUT_TRACKING": "true",
        # The worker answers at its deadline; only if it cannot does the server's own limit come.
        "NEURON_SUM_MAX_CHARACTERS": str(limits.max_request_characters),
        "NEURON_SUM_LIMIT_S": str(int(limits.deadline_s) + 3),
        "SERVING_CHUNKED_READ_TIMEOUT": str(int(limits.deadline_s) + 60),
    }
