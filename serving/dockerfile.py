"""The serving image's build context, rendered from a row of neuron_sum/platform/matrix.py.

    Dockerfile        rendered from Dockerfile.j2: base image with or without Neuron, Java, DJL Serving, this package;
                      its comments explain how to build and run the image, and what was tested
    entrypoint        bash script that executes java with the options of `neuron-sum serve`
    requirements/     exact versions and hashes of everything that pip installs
    source/           this package

`docker build` needs only this folder and a network.
"""

import shlex
import shutil
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from neuron_sum import __version__, files
from neuron_sum.errors import ResourceError
from neuron_sum.platform.matrix import PLATFORMS, Platform
from neuron_sum.platform.project import PACKAGES, PROJECT_FILES, REQUIREMENTS, SOURCES, project_root
from neuron_sum.recipes.schema import ServeConfig
from serving import djl, local, properties

Target = Literal["cpu", "inf2"]

TEMPLATE = "Dockerfile.j2"
MARK = "# Made by `neuron-sum dockerfile"
"""First words of a generated Dockerfile; a folder with such a file may be replaced."""

HOME, PROGRAM, MODEL, TEMPORARY = Path("/opt/djl"), Path("/opt/neuron-sum"), Path("/opt/ml/model"), Path("/tmp")
PORT = 8080
USER = "neuron-sum"

ENTRYPOINT = """\
#!/bin/bash
# SageMaker starts the container with the argument `serve`; any other command is executed unchanged, for debugging.
set -euo pipefail
if [[ "${{1:-serve}}" != serve ]]; then
    exec "$@"
fi
# In an inference pipeline SageMaker sets the port.
export SERVING_INFERENCE_ADDRESS="${{SERVING_INFERENCE_ADDRESS:-http://0.0.0.0:${{SAGEMAKER_BIND_TO_PORT:-{port}}}}}"
export SERVING_MANAGEMENT_ADDRESS="${{SERVING_MANAGEMENT_ADDRESS:-$SERVING_INFERENCE_ADDRESS}}"
model=()
if [[ -f {model}/{properties} ]]; then
    # Device -1: no DJL device. See the Dockerfile.
    model=(-m model::Python:-1=file://{model}){workers}
elif [[ "${{SAGEMAKER_MULTI_MODEL:-}}" != true ]]; then
    echo "{model} holds no {properties}; unpack a model.tar.gz of neuron-sum package ARTIFACT there" >&2
    exit 1
fi
# exec, so that SIGTERM reaches Java, whose shutdown hook waits for the accepted requests (Gate.java).
exec java \\
    {options} \\
    -cp '{home}/{libraries}/*' {main} "${{model[@]}}"
"""

WORKERS = f"""
    # One worker per NeuronCore that this container may use, or per group of cores that the artifact needs.
    variables="$(python -m serving.properties {MODEL})"
    eval "$variables\""""


def write_context(target: Target, output: Path, platform: Platform = PLATFORMS[0]) -> None:
    """Write the build context.

    Args:
        target: The hardware that the image will run on.
        output: The folder to write; an earlier build context is replaced.
        platform: The row of the platform matrix.

    Raises:
        ResourceError: If the project's files are missing, or if the folder has other content.
    """
    root = project_root()
    dockerfile = output / "Dockerfile"
    if output.exists() and not (dockerfile.is_file() and dockerfile.read_text(encoding="utf-8").startswith(MARK)):
        raise ResourceError(
            f"{output} already exists and was not created by `neuron-sum dockerfile`",
            "choose another folder with --output",
        )
    files.check_writable(output.parent, 0)
    with files.new_folder(output) as folder:
        (folder / "Dockerfile").write_text(render(target, platform), encoding="utf-8")
        (folder / "entrypoint").write_text(render_entrypoint(target), encoding="utf-8")
        shutil.copytree(root / REQUIREMENTS, folder / "requirements")
        source = folder / "source"
        source.mkdir()
        for name in PROJECT_FILES:
            shutil.copyfile(root / name, source / name)
        for name in PACKAGES:
            shutil.copytree(SOURCES / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))


def render(target: Target, platform: Platform = PLATFORMS[0]) -> str:
    """The text of the Dockerfile."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    return templates.get_template(TEMPLATE).render(
        mark=MARK,
        target=target,
        version=__version__,
        platform=platform,
        builder=platform.serving_images["cpu"],
        image=platform.serving_images[target],
        neuron=target == "inf2",
        djl=djl,
        home=HOME,
        program=PROGRAM,
        model=MODEL,
        port=PORT,
        user=USER,
        grace_s=int(local.STOP_LIMIT_S),
        configuration=local.CONFIGURATION.name,
        pins=_pins(platform.pins | (platform.vendor_pins if target == "inf2" else {})),
        environment={
            djl.HOME_VARIABLE: HOME,
            "MODEL_SERVER_HOME": HOME,
            "DJL_CACHE_DIR": TEMPORARY / "djl",
            "PYTHON_EXECUTABLE": "python",
            "PYTHONUNBUFFERED": "1",
            # SageMaker's Host header is not documented. No token: only SageMaker's multi-model mode changes models.
            "NEURON_SUM_HOSTS": "*",
            **properties.server_environment(ServeConfig()),
        },
    )


def render_entrypoint(target: Target) -> str:
    """The script that executes the server: Java with the options of `neuron-sum serve`."""
    local_path, image_path = str(local.CONFIGURATION), str(PROGRAM / local.CONFIGURATION.name)
    options = [shlex.quote(option.replace(local_path, image_path)) for option in local.java_options(TEMPORARY)]
    return ENTRYPOINT.format(
        port=PORT,
        model=MODEL,
        properties=properties.FILE,
        workers=WORKERS if target == "inf2" else "",
        options=" \\\n    ".join(options),
        home=HOME,
        libraries=djl.LIBRARIES,
        main=djl.MAIN_CLASS,
    )


def _pins(versions: dict[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in versions.items()]
