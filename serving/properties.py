"""serving.properties: a model's settings for DJL Serving and the handler, rendered from its artifact and recipe.

Shapes, prompt and adapters are only in the artifact's manifest. The machine that packs an artifact for Neuron does not
know on how many cores it will be served. Then the file contains no number of workers, and the server takes it from its
environment, which the image's entrypoint prints with

    python -m serving.properties FOLDER
"""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from neuron_sum.artifact import MANIFEST, Artifact, Manifest, read_manifest
from neuron_sum.errors import ArtifactError, NeuronSumError, RecipeError, reading
from neuron_sum.recipes.schema import ServeConfig
from neuron_sum.runtimes import device

LOADING_TIMEOUT_S = 900
"""Maximum seconds to read the weights and run every graph once; DJL's default of 240 s is too short for a large model
on a slow disk."""

FILE = "serving.properties"
ARTIFACT = "artifact"
"""Name of the artifact's folder in a model's folder."""

PREFIX = "option.serve_"
MAX_BYTES = 1 << 16
REMEDY = "run `neuron-sum package` again"


def render(artifact: Artifact, limits: ServeConfig) -> str:
    """The text of a model's serving.properties in the layout of package.py.

    Raises:
        ArtifactError: If the artifact checks claims and writes no summaries.
    """
    if artifact.recipe.data.claims is not None:
        raise ArtifactError(
            f"{artifact.path} checks claims and writes no summaries, so that it cannot be served",
            "use it with --set evaluate.claims.model=ARTIFACT",
        )
    values: dict[str, Any] = {
        "engine": "Python",
        **_worker_settings(limits.workers or (1 if artifact.manifest.target == "cpu" else None)),
        "job_queue_size": limits.queue_size + limits.max_items,
        "option.entryPoint": "serving.model",
        "option.async_mode": "true",
        "option.model_loading_timeout": LOADING_TIMEOUT_S,
        "option.predict_timeout": LOADING_TIMEOUT_S,
        "option.enable_lora": "true" if artifact.manifest.adapters is not None else "false",
        **{PREFIX + name: value for name, value in limits.model_dump(mode="json").items() if value is not None},
    }
    lines = (f"{name}={str(value).lower() if isinstance(value, bool) else value}\n" for name, value in values.items())
    return "".join(lines)


def _worker_settings(workers: int | None) -> dict[str, int]:
    """The settings that depend on the number of workers; empty if the machine that serves the artifact decides.

    On a CPU one worker batches over all requests, and a second one would load the weights again. Each worker may die
    once before the model has answered again; DJL's default of 0 tolerates no failure.
    """
    return {} if workers is None else {"minWorkers": workers, "maxWorkers": workers, "retry_threshold": workers}


def worker_environment(manifests: Sequence[Manifest], environment: Mapping[str, str]) -> dict[str, str]:
    """Variables with the number of workers per model, for models whose settings contain none.

    Args:
        manifests: The models of the server.
        environment: The environment variables of the server.

    Raises:
        PlatformError: If an environment variable of the Neuron runtime is invalid.
    """
    compilations = [manifest.compilation for manifest in manifests if manifest.compilation is not None]
    if not compilations:
        return {}
    needed = sum(compilation.tensor_parallel_size for compilation in compilations)
    workers = str(device.workers(needed, environment))
    return dict.fromkeys(("SERVING_MIN_WORKERS", "SERVING_MAX_WORKERS", "SERVING_RETRY_THRESHOLD"), workers)


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
    known = _parse(render(artifact, ServeConfig(workers=1)))
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
    expected = _parse(render(artifact, limits))
    for name in expected | found:
        if not name.startswith(PREFIX) and found.get(name) != expected.get(name):
            value, right = found.get(name, "missing"), expected.get(name, "missing")
            raise ArtifactError(f"{place}: {name} is {value[:200]!r}, must be {right!r}", REMEDY)
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


if __name__ == "__main__":
    try:
        variables = worker_environment([read_manifest(Path(sys.argv[1]) / ARTIFACT / MANIFEST)], os.environ)
    except NeuronSumError as caught:
        sys.exit(f"error: {caught.message}; {caught.hint}")
    print("".join(f"export {name}={value}\n" for name, value in variables.items()), end="")
