"""Rehearsal of an AWS run on this machine: the requests of a launch, run in the layout of SageMaker's containers."""

import contextlib
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from neuron_sum import console, files
from neuron_sum.errors import AwsError, MissingExtraError, NeuronSumError, ResourceError, RunError
from neuron_sum.recipes.schema import Recipe
from neuron_sum.runs.folder import CHECKPOINT_MARK
from neuron_sum.subprocesses import ending_with_parent
from sagemaker_jobs.aws.names import ANY_ACCOUNT, AwsContext, new_run
from sagemaker_jobs.jobs import inputs, requests, training, wheelhouse
from sagemaker_jobs.jobs.follow import Job
from sagemaker_jobs.launch.channels import Channel
from sagemaker_jobs.launch.options import TrainOptions
from sagemaker_jobs.launch.start import Launch
from sagemaker_jobs.rehearsal import commands as own_commands
from sagemaker_jobs.rehearsal import image as local_image
from sagemaker_jobs.rehearsal.container import KILLED_S, Container, Ended, running
from sagemaker_jobs.rehearsal.image import LocalImage
from sagemaker_jobs.rehearsal.store import LocalStore, share_graphs
from sagemaker_jobs.stack.stack import Request, planned_stack

Result = TypeVar("Result")
REGION = "us-east-1"
"""Region of the names in the requests; no request is sent to it."""

LIMIT_H = 4.0
"""Maximum run time of the requests in hours, which the rehearsal also applies."""

BASE = "base"
"""Folder of the base model in a run, which has priority over the path that the run records."""

NEEDS_AWS = {
    "the image": "that the job may pull it, and its contents: Python, torch and the Neuron packages",
    "IAM": "that the role can be assumed and has the permissions of the job (neuron-sum aws setup)",
    "S3": "uploads and downloads, encryption, access from a VPC",
    "Neuron devices": "doctor on them, training and compiled graphs on NeuronCores",
    "quotas and capacity": "that an instance of that type is available",
    "prices": "neuron-sum aws plan prints the maximum cost",
}
"""Aspects that no rehearsal can test."""


@dataclass
class Stage:
    """The result of one stage.

    Attributes:
        name: The name of the stage.
        seen: The observed result; empty until the stage is finished.
        skipped: The reason for skipping the stage; None if it ran.
        seconds: The duration in seconds.
    """

    name: str
    seen: str = ""
    skipped: str | None = None
    seconds: float = 0.0


@dataclass
class Rehearsal:
    """A rehearsal and its results.

    Attributes:
        recipe: The recipe to rehearse.
        folder: The folder for all files, given by the caller or temporary.
        instance: The instance type in the requests.
        stages: The stages in order; the last one may still run.
        scores: The ROUGE scores of the trained run.
        dialogue: The dialogue sent to the server.
        summary: The server's answer.
        unproven: The aspects that this rehearsal could not test, with reasons.
        jobs: The names of the containers that ran.
    """

    recipe: Recipe
    folder: Path
    instance: str
    stages: list[Stage] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    dialogue: str = ""
    summary: str = ""
    unproven: dict[str, str] = field(default_factory=lambda: dict(NEEDS_AWS))
    jobs: list[str] = field(default_factory=list)

    def run(self, wheels: Path | None, *, namespaces: bool) -> None:
        """Run all stages.

        Args:
            wheels: An existing wheelhouse; None: only neuron-sum's wheel.
            namespaces: Whether to use namespaces if they are allowed.

        Raises:
            NeuronSumError: If a stage fails, with its name.
        """
        wheels = self._do("wheelhouse", lambda stage: self._wheels(stage, wheels))
        image = self._do("container", lambda stage: self._image(stage, namespaces, checkout=wheels is None))
        store = LocalStore(self._new("s3"))
        channels = self._do("data", lambda stage: self._channels(stage, wheels))
        code = inputs.code_channels(wheels)
        first, second, compiling = self._do("requests", lambda stage: self._requests(stage, channels, code, store))
        ended = self._do("kill", lambda stage: self._train_and_kill(stage, first, store, image))
        trained = first if ended else second
        if ended:
            compiling = self._compile_launch(first, code, 1)
        else:
            self._do("resume", lambda stage: self._resume(stage, second, store, image))
        self._do("evaluate", lambda stage: self._evaluate(stage, store.model(_job(trained))))
        store.upload(compiling)
        archive = self._do("compile", lambda stage: self._compile(stage, compiling, store, image))
        model = self._do("package", lambda stage: self._package(stage, archive))
        self._do("serve", lambda stage: self._serve(stage, model))

    def launches(self, channels: list[Channel], code: list[Channel]) -> tuple[Launch, Launch, Launch]:
        """The launches of the rehearsal: a training, the attempt that resumes it, and the compile job of its model.

        Args:
            channels: The input channels of the training.
            code: The channels among them that the compile job also reads.
        """
        run, stack = new_run(self.recipe.name), planned_stack(AwsContext(ANY_ACCOUNT, REGION))
        options = TrainOptions(self.instance, LIMIT_H)
        first, second = (training.launch(run, self.recipe, options, channels, stack, attempt=each) for each in (1, 2))
        return first, second, self._compile_launch(second, code, 2)

    def count_processes(self) -> int:
        """The number of processes of the containers, the server and the commands that still run."""
        commands = running(str(self.folder), own_commands.MARK)
        processes = [*commands, *(process for job in self.jobs for process in running(job))]
        _, alive = psutil.wait_procs(processes, timeout=KILLED_S)  # a killed process is still listed for a moment
        return len(alive)

    def _do(self, name: str, step: Callable[[Stage], Result]) -> Result:
        """Run a stage, print its start and its result, and return its value; add its name to an error."""
        stage = Stage(name)
        self.stages.append(stage)
        console.note(f"\n== {name}")
        begun = time.monotonic()
        try:
            value = step(stage)
        except MissingExtraError:
            raise
        except NeuronSumError as error:
            error.message = f"rehearsing {name}: {error.message}"
            raise
        stage.seconds = time.monotonic() - begun
        console.note(f"   {(stage.skipped and 'not rehearsed: ' + stage.skipped) or stage.seen}")
        return value

    def _new(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _image(self, stage: Stage, namespaces: bool, *, checkout: bool) -> LocalImage:
        image = local_image.make(self._new("image"), namespaces=namespaces, checkout=checkout)
        if image.isolated:
            stage.seen = "a real /opt/ml, isolated processes and no network except the loopback (tested)"
        else:
            stage.seen = "folders in the layout of /opt/ml, named by SAGEMAKER_BASE_DIR"
            self.unproven["the paths below /opt/ml"] = (
                f"folders in the same layout were used, with the recipe's paths rewritten ({image.why_folders})"
            )
            self.unproven["no network"] = "the containers had this machine's network"
        named = [self.recipe.data.path, self.recipe.model.name_or_path]
        if any(name is not None and not Path(name).is_absolute() for name in named):
            self.unproven["the hub"] = "its models and data came from this machine's cache"
        return image

    def _wheels(self, stage: Stage, wheels: Path | None) -> Path | None:
        if wheels is not None:
            stage.seen = f"{len(list(wheels.glob('*.whl')))} wheels in {wheels}, for the entry script to install"
            return wheels
        try:
            wheel = wheelhouse.build_own(self._new("wheelhouse"))
        except ResourceError as error:
            stage.skipped = f"{error.message}; neuron-sum was used from its current location"
            return None
        self.unproven["the other wheels"] = "this environment's versions were used; test the wheels with --wheelhouse"
        stage.seen = f"{wheel.name}, for the entry script to install; its dependencies are from this environment"
        return wheel.parent

    def _channels(self, stage: Stage, wheels: Path | None) -> list[Channel]:
        channels = inputs.channels(self.recipe, self._new("written"), wheels)
        names, total = ", ".join(sorted(each.name for each in channels)), sum(each.size for each in channels)
        count = sum(len(each.files) for each in channels)
        stage.seen = f"{len(channels)} channels ({names}), {count} files, {console.size(total)}"
        return channels

    def _requests(
        self, stage: Stage, channels: list[Channel], code: list[Channel], store: LocalStore
    ) -> tuple[Launch, Launch, Launch]:
        launches = self.launches(channels, code)
        calls = [call for each in launches for call in each.calls]
        try:
            for call in calls:
                call.validate()
            stage.seen = f"{len(calls)} requests of {launches[0].run.id} are valid by the AWS service models"
        except MissingExtraError as error:
            stage.skipped = f"no request was validated: {error.message} ({error.hint})"
        store.upload(launches[0])
        return launches

    @contextlib.contextmanager
    def _container(
        self, request: Request, store: LocalStore, image: LocalImage, lines: list[str]
    ) -> Iterator[Container]:
        """Run the container of a job; print its output and write it to a log file in the folder."""
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{request['TrainingJobName']}.log"
        log.write_text("", encoding="utf-8")
        self.jobs.append(request["TrainingJobName"])

        def on_line(line: str) -> None:
            lines.append(line)
            with log.open("a", encoding="utf-8") as log_file:
                log_file.write(f"{line}\n")
            console.note(f"   | {line}")

        checkpoints = store.checkpoints(request)
        # All jobs use the same folder, so that without a real /opt/ml the paths in one job's files work in the next.
        with Container(request, store.fetch, image, self.folder / "ml", checkpoints, on_line) as container:
            yield container

    def _train_and_kill(self, stage: Stage, launch: Launch, store: LocalStore, image: LocalImage) -> bool:
        """Run the first attempt and kill it after a checkpoint; return whether it ended before that."""
        request, lines = _job(launch), list[str]()
        run = store.checkpoints(request) / "run" / "checkpoints"

        def saved() -> bool:
            return any(run.glob(f"checkpoint-*/{CHECKPOINT_MARK}"))

        with self._container(request, store, image, lines) as container:
            ended = container.wait(saved)
            if ended is None:
                container.kill()
                checkpoints = ", ".join(sorted(path.parent.name for path in run.glob(f"*/{CHECKPOINT_MARK}")))
                stage.seen = (
                    f"SIGKILL to all its processes after {checkpoints} was saved, like the loss of a spot machine"
                )
                if self.count_processes():
                    raise AwsError(f"{self.count_processes()} processes survived SIGKILL")
                return False
            _check(ended)
            container.write_model(store.model(request))
        stage.skipped = "the training ended before it saved a checkpoint; use a smaller train.save_steps=N"
        return True

    def _resume(self, stage: Stage, launch: Launch, store: LocalStore, image: LocalImage) -> None:
        request, lines = _job(launch), list[str]()
        with self._container(request, store, image, lines) as container:
            _check(container.wait())
            container.write_model(store.model(request))
        found = next((line for line in lines if line.startswith("continuing from ")), None)
        if found is None:
            raise RunError(
                "the second attempt started from the beginning",
                "Check the checkpoints of the first attempt in checkpoints/run.",
            )
        results = files.read_json(self.folder / "ml" / "model" / "run" / "all_results.json")
        stage.seen = f"{found}, ended at step {results['global_step']} with loss {results['train_loss']:.3f}"

    def _evaluate(self, stage: Stage, archive: Path) -> None:
        """Unpack model.tar.gz and evaluate the run, as a user would."""
        trained = self._new("trained")
        with tarfile.open(archive) as packed:
            packed.extractall(trained, filter="data")
        run = trained / "run"
        # The run records data and base model by their paths in the container, so a user has to pass the local paths.
        data, base = self.recipe.data.path, self.recipe.model.name_or_path
        overrides = ["--set", f"data.path={data}"] if data is not None and Path(data).is_absolute() else []
        if base is not None and Path(base).is_absolute() and not (run / BASE).exists():
            (run / BASE).symlink_to(base)
        report = own_commands.run(
            self.folder, "evaluate", str(run), *overrides, "--output", str(self.folder / "evaluation")
        )
        scores = report["systems"][0]["scores"]
        self.scores = {name: score["value"] for name, score in scores.items()}
        stage.seen = ", ".join(f"{name} {value:.1f}" for name, value in self.scores.items())
        stage.seen += f" on {report['systems'][0]['examples']} dialogues, from the unpacked model.tar.gz"

    def _compile_launch(self, trained: Launch, code: list[Channel], attempt: int) -> Launch:
        """The launch that `aws compile RUN --target cpu` would send after that training."""
        job = Job(_job(trained))
        base = {name: address for name, address in job.channels.items() if name == requests.MODEL}
        return training.job_launch(
            trained.run,
            "compile",
            requests.compile_arguments("cpu"),
            TrainOptions(self.instance, LIMIT_H),
            code,
            trained.stack,
            addresses={requests.TRAINED: trained.stack.model(trained.run, "train", attempt), **base},
        )

    def _compile(self, stage: Stage, launch: Launch, store: LocalStore, image: LocalImage) -> Path:
        request = _job(launch)
        graphs, cache = store.checkpoints(request) / "cache", files.cache_folder()
        reused = share_graphs(cache, graphs)
        with self._container(request, store, image, []) as container:
            _check(container.wait())
            container.write_model(store.model(request))
        compiled = share_graphs(graphs, cache)
        stage.seen = f"with the compile job's request, for this CPU; {compiled} graphs compiled"
        stage.seen += f", {reused} taken from this machine's cache" if reused else ""
        return store.model(request)

    def _package(self, stage: Stage, archive: Path) -> Path:
        model = self.folder / "model.tar.gz"
        shutil.copy(archive, model)
        with tarfile.open(model) as packed:
            names = packed.getnames()
        if "serving.properties" not in names:
            raise AwsError(
                f"the compile job's model.tar.gz lacks serving.properties, which an endpoint needs: {names[:8]}"
            )
        stage.seen = f"the job's model.tar.gz, {console.size(model.stat().st_size)}, has an endpoint's layout"
        return model

    def _serve(self, stage: Stage, model: Path) -> None:
        from neuron_sum.data.sources import load_dataset

        build = ending_with_parent([sys.executable, "-m", "serving.djl"])
        installed = subprocess.run(build, capture_output=True, text=True, check=False, cwd=self.folder)
        if installed.returncode:
            stage.skipped = f"DJL Serving is not installed: {own_commands.error_in(installed.stderr)[0]}"
            return
        data = load_dataset(self.recipe.data, self.recipe.output)
        self.dialogue = (data["test"] or data["validation"] or data["train"])[0].dialogue
        with own_commands.server(model, self.folder) as url:
            self.summary = own_commands.run(self.folder, "request", url, stdin=self.dialogue)["summary_text"]
        console.note(f"   dialogue: {self.dialogue}\n   summary:  {self.summary}")
        stage.seen = f"DJL Serving answered: {self.summary}"


def _job(launch: Launch) -> Request:
    return launch.calls[0].request


def _check(ended: Ended | None) -> None:
    """Raise an error if a container did not complete."""
    assert ended is not None  # wait was called without a condition
    if ended.status != "Completed":
        reason = re.sub(r"\s*\n\s*", " | ", (ended.reason or f"it was {ended.status.lower()}").strip())
        raise AwsError(
            f"the container ended with exit code {ended.code}: {reason}",
            "Read its last lines above, or use --keep-files FOLDER and run `neuron-sum explain FOLDER/logs/JOB.log`.",
        )
