"""Containers for tests: a valid request whose entrypoint is a script of the test, in an image created once."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sagemaker_jobs.aws.names import AwsContext, new_run
from sagemaker_jobs.jobs.requests import INPUT
from sagemaker_jobs.jobs.training import job_launch
from sagemaker_jobs.launch.options import JobOptions
from sagemaker_jobs.rehearsal.container import Container
from sagemaker_jobs.rehearsal.image import LocalImage
from sagemaker_jobs.stack.stack import planned_stack

STACK = planned_stack(AwsContext("123456789012", "us-east-1"))

SIGTERM_NOTED = """
import pathlib, signal, sys, time
def stop(number, frame):
    pathlib.Path(BASE, "model", "saved").write_text("in time")
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
while True: time.sleep(0.01)
"""
DEAF = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print("ready", flush=True)
time.sleep(600)
"""
BASE = "import os; BASE = os.environ.get('SAGEMAKER_BASE_DIR', '/opt/ml')\n"


def request_for(**changes: Any) -> dict[str, Any]:
    """The request of a new job with the channels code and recipe, which runs script.py of the channel code."""
    launch = job_launch(
        new_run("tiny"),
        "train",
        ("--an", f"{INPUT}/recipe"),
        JobOptions("ml.c7i.4xlarge", 1),
        [],
        STACK,
        addresses={"code": "s3://a-bucket/c/", "recipe": "s3://b/r/"},
    )
    made = launch["training-job"].request
    made["AlgorithmSpecification"]["ContainerEntrypoint"] = ["python3", f"{INPUT}/code/script.py"]
    return {**made, **changes}


def container(
    script: str, image: LocalImage, folder: Path, on_line: Callable[[str], None] | None = None, **changes: Any
) -> Container:
    """A container for a `with` statement."""

    def fetch(channel: dict[str, Any], into: Path) -> None:
        if channel["ChannelName"] == "code":
            (into / "script.py").write_text(BASE + script)
        else:
            (into / "recipe.yaml").write_text(f"data: {INPUT}/data\n")

    return Container(request_for(**changes), fetch, image, folder / "ml", folder / "kept", on_line)


def orphan(image: LocalImage, folder: Path) -> subprocess.Popen[str]:
    """A process that runs a container which ignores signals, and prints when that is ready."""
    code = (
        "import sys, pickle, pathlib; sys.path.insert(0, sys.argv[1]); import aws_container\n"
        "image = pickle.loads(bytes.fromhex(sys.argv[2]))\n"
        "made = aws_container.container(aws_container.DEAF, image, pathlib.Path(sys.argv[3]), lambda line: print(line, "
        "made.name, flush=True))\n"
        "with made:\n    made.wait()\n"
    )
    import pickle

    arguments = [str(Path(__file__).parent), pickle.dumps(image).hex(), str(folder)]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
