"""Processes of `neuron-sum` that start at once: forks of one that has imported everything, and has no threads.

A command is a line of JSON on stdin (words, environment, folder). The answer is the fork's id; the fork waits for
another line, so that its killer knows the id in time. Then its exit code follows.
"""

import gc
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import boto3
import typer.main

SERVICES = (
    "application-autoscaling",
    "cloudformation",
    "codebuild",
    "ecr",
    "logs",
    "pricing",
    "s3",
    "sagemaker",
    "scheduler",
    "service-quotas",
    "sts",
)


class Session(boto3.session.Session):
    """A cached session: reading the description of SageMaker takes as long as all calls of a run.

    Attributes:
        made: Clients by service and server.
        directly: Answers a request instead of the server; None if the request is to be sent.
    """

    made: ClassVar[dict[tuple[str, str], Any]] = {}
    directly: ClassVar[Callable[..., Any]] = staticmethod(lambda request, **_: None)

    def client(self, service: str, **options: Any) -> Any:  # type: ignore[override]
        key = service, os.environ["AWS_ENDPOINT_URL"]
        if key not in self.made:
            made = self.made[key] = super().client(service, **options)
            made.meta.events.register("before-send", lambda **sent: Session.directly(**sent))
        return self.made[key]


class Forks:
    """The process that forks; it starts with the current environment."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, words: Sequence[str], on_start: Callable[[int], None]) -> int:
        """Runs a command to its end.

        Args:
            words: The words of the command line.
            on_start: Called with the process, which does nothing before this returns.

        Returns:
            The exit code; minus the signal that killed the process.
        """
        told = {"words": list(words), "environment": dict(os.environ), "folder": str(Path.cwd())}
        on_start(int(self._answer(json.dumps(told))))
        return int(self._answer("go"))

    def close(self) -> None:
        self._process.communicate()

    def _answer(self, line: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


def _serve() -> None:
    import sagemaker_jobs
    from neuron_sum.cli import build
    from neuron_sum.recipes.loading import load_recipe
    from sagemaker_jobs.aws.account import Account

    for module in pkgutil.walk_packages(sagemaker_jobs.__path__, "sagemaker_jobs."):
        if module.name != "sagemaker_jobs.jobs.entry":
            import_module(module.name)
    import_module("s3transfer.manager")
    import_module("sagemaker_jobs.launch.call").RETRY_S = 0
    load_recipe("tiny")
    boto3.Session = cache(Session)
    account = Account()
    for service in SERVICES:
        account.client(service)
    command = typer.main.get_command(build())
    gc.freeze()  # garbage collection would write to every page that the forks share
    assert len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208 - a fork has the thread that forks, and the others' locks
    while line := sys.stdin.readline():
        held, release = os.pipe()
        if (fork := os.fork()) == 0:
            os.close(release)
            os.read(held, 1)
            _become(json.loads(line), command)
        os.close(held)
        print(fork, flush=True)
        sys.stdin.readline()
        os.close(release)
        print(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), flush=True)


def _become(told: dict[str, Any], command: Callable[..., None]) -> None:
    """Runs the command in this process; does not return."""
    os.environ.clear()
    os.environ.update(told["environment"])
    os.chdir(told["folder"])
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    code = 1
    try:
        command(told["words"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
