"""serving.properties: a model's settings for DJL Serving and the handler, rendered from its artifact and recipe.

Shapes, prompt and adapters are only in the artifact's manifest.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from neuron_sum.artifact import Artifact
from neuron_sum.errors import ArtifactError, RecipeError, reading
from neuron_sum.recipes.schema import ServeConfig

LOADING_TIMEOUT_S = 900
"""Maximum seconds to read the weights and run every graph once; DJL's default of 240 s is too short for a large model
on a slow disk."""

RETRY_THRESHOLD = 1
"""Number of consecutive worker failures that are tolerated: the worker may die once, but if it does not restart, the
model has failed permanently and /ping reports it. DJL's default of 0 tolerates none."""

FILE = "serving.properties"
ARTIFACT = "artifact"
"""Name of the artifact's folder in a model's folder."""

PREFIX = "option.serve_"
MAX_BYTES = 1 << 16
REMEDY = "run `neuron-sum package` again"


def render(artifact: Artifact, limits: ServeConfig) -> str:
    """The text of a model's serving.properties in the layout of package.py."""
    values: dict[str, Any] = {
        "engine": "Python",
        # One worker: it batches over all requests, and a second worker would load the weights again.
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
    """The keys and values of a file that `render` wrote."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def read_limits(options: Mapping[str, str]) -> ServeConfig:
    """The limits from the keys of the file.

    Raises:
        RecipeError: If a value is invalid.
    """
    values = {name.removeprefix(PREFIX): value for name, value in options.items() if name.startswith(PREFIX)}
    try:
        return ServeConfig.model_validate(values, strict=False)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"serving.properties: {PREFIX}{first['loc'][0]}: {first['msg']}", REMEDY) from error


def check(path: Path, artifact: Artifact, package: Path) -> ServeConfig:
    """The limits in the file of a package, which may contain only the keys and values that `render` writes.

    Args:
        path: The file.
        artifact: The artifact of the package.
        package: The package, for messages.

    Raises:
        ArtifactError: With the first other line.
    """
    place = f"{package}: {FILE}"
    with reading(place, ArtifactError, REMEDY):
        content = path.read_bytes()
        if len(content) > MAX_BYTES:
            raise ArtifactError(f"{place} has {len(content)} bytes; at most {MAX_BYTES} are allowed", REMEDY)
        lines = content.decode().split("\n")
    known = _parse(render(artifact, ServeConfig()))
    found: dict[str, str] = {}
    for line in filter(None, lines):
        name, separator, value = line.partition("=")
        if not separator or name not in known:
            raise ArtifactError(f"{place}: {line[:200]!r} is not a setting of neuron-sum", REMEDY)
        if name in found:
            raise ArtifactError(f"{place}: {name} occurs twice", REMEDY)
        found[name] = value
    try:
        limits = read_limits(found)
    except RecipeError as error:
        raise ArtifactError(f"{package}: {error.message}", REMEDY) from error
    for name, expected in _parse(render(artifact, limits)).items():
        if not name.startswith(PREFIX) and found.get(name) != expected:
            raise ArtifactError(
                f"{place}: {name} is {found.get(name, 'missing')[:200]!r}, must be {expected!r}", REMEDY
            )
    return limits


def _parse(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines())


def server_environment(limits: ServeConfig) -> dict[str, str]:
    """Settings that the server reads only from its environment."""
    return {
        "SERVING_MAX_REQUEST_SIZE": str(limits.max_body_bytes),
        "SERVING_PROMETHEUS": "true",
        "DJL_OFFLINE": "true",
        "ALLOW_REQUEST_HANDLER_OVERRIDE": "false",
        "OPT_OUT_TRACKING": "true",
        "NEURON_SUM_MAX_CHARACTERS": str(limits.max_request_characters),
        # The worker answers at its deadline; the server's limit applies only if the worker cannot answer.
        "NEURON_SUM_LIMIT_S": str(int(limits.deadline_s) + 3),
        "SERVING_CHUNKED_READ_TIMEOUT": str(int(limits.deadline_s) + 60),
    }
