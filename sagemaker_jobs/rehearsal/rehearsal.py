"""A recipe's whole life in AWS, on this machine: the requests of a launch, run in the container's own layout."""

import contextlib
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from neuron_sum import console, files
from neuron_sum.errors import AwsError, MissingExtraError, NeuronSumError, ResourceError, RunError
from neuron_sum.recipes.schema import Recipe
from neuron_sum.runs.folder import CHECKPOINT_MARK
from sagemaker_jobs.aws.names import ANY_ACCOUNT, AwsContext, new_run
from sagemaker_jobs.aws.place import NetworkSecurity, Request
from sagemaker_jobs.jobs import inputs, requests, training, wheelhouse
from sagemaker_jobs.jobs.training import Options
from sagemaker_jobs.launch.channels import Channel
from sagemaker_jobs.launch.start import Launch
from sagemaker_jobs.rehearsal import commands as own_commands
from sagemaker_jobs.rehearsal import image as local_image
from sagemaker_jobs.rehearsal.container import KILLED_S, Container, Ended, running, started
from sagemaker_jobs.rehearsal.image import LocalImage
from sagemaker_jobs.rehearsal.store import LocalStore, share_graphs

REGION = "us-east-1"
"""Of the names in the requests; nothing is asked there."""

LIMIT_S = 4 * 3600
"""MaxRuntimeInSeconds of the requests, which holds here, too."""

BASE = "base"
"""Of a run: its base model, which goes before the path that the run knows."""

NEEDS_AWS = {
    "the image": "that AWS's registry lets the job pull it, and what is in it: its Python, torch and Neuron's packages",
    "IAM": "that the role can be assumed, and allows what the job does (neuron-sum aws iam)",
    "S3": "uploads and downloads, encryption, a VPC's way there",
    "Neuron devices": "doctor on them, training and compiled graphs on NeuronCores",
    "quotas and capacity": "that an instance of that type is to be had",
    "prices": "neuron-sum aws plan says the most that it can cost",
}
"""What no rehearsal can show."""


@dataclass
class Stage:
    """What one stage showed.

    Attributes:
        name: Which.
        seen: What was seen; empty until it is over.
        skipped: Why it was not rehearsed; None if it was.
        seconds: How long it took.
    """

    name: str
    seen: str = ""
    skipped: str | None = None
    seconds: float = 0.0


@dataclass
class Rehearsal:
    """A rehearsal under way, and what came of it.

    Attributes:
        recipe: What is rehearsed.
        folder: Where everything lies, the folder of the caller's or a temporary one.
        instance: Of the requests.
        stages: In their order, the one under way last.
        scores: ROUGE of the trained run.
        dialogue: What was asked of the server.
        summary: What it answered.
        unproven: What else this rehearsal could not show, and why.
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
        """All stages.

        Args:
            wheels: A wheelhouse that was built; None: our own wheel alone.
            namespaces: Whether to use them where they are allowed.

        Raises:
            NeuronSumError: If a stage fails, with its name.
        """
        with self._stage("wheelhouse") as stage:
            wheels = self._wheels(stage, wheels)
        with self._stage("container") as stage:
            image = local_image.make(self._new("image"), namespaces=namespaces, checkout=wheels is None)
            self._describe(stage, image)
        store = LocalStore(self._new("s3"))
        with self._stage("data") as stage:
            channels = inputs.channels(self.recipe, self._new("written"), wheels, NetworkSecurity())
            stage.seen = f"{len(channels)} channels ({', '.join(sorted(each.name for each in channels))}), " + (
                f"{sum(len(each.files) for each in channels)} files, {console.size(sum(c.size for c in channels))}"
            )
        with self._stage("requests") as stage:
            code = inputs.code_channels(wheels)
            first, second, compiling = self.launches(channels, code)
            self._validate(stage, first, second, compiling)
            store.upload(first)
        with self._stage("kill") as stage:
            ended = self._train_and_kill(stage, first, store, image)
        if not ended:
            with self._stage("resume") as stage:
                self._resume(stage, second, store, image)
        trained = first if ended else second
        with self._stage("evaluate") as stage:
            self._evaluate(stage, store.model(_job(trained)))
        with self._stage("compile") as stage:
            launch = self._compile_launch(trained, code)
            store.upload(launch)
            archive = self._compile(stage, launch, store, image)
        with self._stage("package") as stage:
            model = self._package(stage, archive)
        with self._stage("serve") as stage:
            self._serve(stage, model)

    def launches(self, channels: list[Channel], code: list[Channel]) -> tuple[Launch, Launch, Launch]:
        """What is run: a training, the attempt that goes on with it, and the compile of what that has trained.

        Args:
            channels: What the training reads.
            code: Of these, what a compile reads, too.
        """
        run = new_run(self.recipe.name)
        first, second = (
            training.launch(run, self.recipe, self._options, channels, AwsContext(ANY_ACCOUNT, REGION), attempt=number)
            for number in (1, 2)
        )
        return first, second, self._compile_launch(second, code)

    @property
    def _options(self) -> Options:
        return Options(self.instance, 1, LIMIT_S)

    def left(self) -> int:
        """How many processes of the containers, of the server and of our commands still run."""
        ours = running(str(self.folder), own_commands.MARK)
        found = [*ours, *(process for job in self.jobs for process in running(job))]
        _, alive = psutil.wait_procs(found, timeout=KILLED_S)  # what was killed is still seen for a moment
        return len(alive)

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[Stage]:
        """Says what begins and what was seen; an error gets the stage's name."""
        stage = Stage(name)
        self.stages.append(stage)
        console.note(f"\n== {name}")
        begun = time.monotonic()
        try:
            yield stage
        except MissingExtraError:
            raise
        except NeuronSumError as error:
            error.message = f"rehearsing {name}: {error.message}"
            raise
        stage.seconds = time.monotonic() - begun
        console.note(f"   {(stage.skipped and 'not rehearsed: ' + stage.skipped) or stage.seen}")

    def _new(self, name: str) -> Path:
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def _describe(self, stage: Stage, image: LocalImage) -> None:
        if image.isolated:
            stage.seen = "a real /opt/ml, processes of its own, and no network: only the loopback, a way out was tried"
        else:
            stage.seen = "folders in the shape of /opt/ml, named by SAGEMAKER_BASE_DIR"
            self.unproven["the paths below /opt/ml"] = (
                f"folders of the same shape were used, and the recipe's paths rewritten ({image.why_folders})"
            )
            self.unproven["no network"] = "the containers had this machine's"
        named = [self.recipe.data.path, self.recipe.model.name_or_path]
        if any(name is not None and not Path(name).is_absolute() for name in named):
            self.unproven["the hub"] = "its ids came from this machine's cache"

    def _wheels(self, stage: Stage, given: Path | None) -> Path | None:
        if given is not None:
            stage.seen = f"{len(list(given.glob('*.whl')))} wheels of {given}, for the entry script to install"
            return given
        try:
            own = wheelhouse.build_own(self._new("wheelhouse"))
        except ResourceError as error:
            stage.skipped = f"{error.message}; neuron-sum came from where this one is"
            return None
        self.unproven["the other wheels"] = "the image's versions were this environment's; --wheelhouse takes all"
        stage.seen = f"{own.name}, for the entry script to install; its packages beside it are this environment's"
        return own.parent

    def _validate(self, stage: Stage, *launches: Launch) -> None:
        calls = [call for each in launches for call in (*each.bucket_calls, *each.role_calls, *each.calls)]
        try:
            for call in calls:
                call.validate()
        except MissingExtraError as error:
            stage.skipped = f"no request was validated: {error.message} ({error.hint})"
            return
        stage.seen = f"{len(calls)} requests hold against AWS's own service models, as those of {launches[0].run.id}"

    def _container(
        self, request: Request, store: LocalStore, image: LocalImage, lines: list[str]
    ) -> contextlib.AbstractContextManager[Container]:
        """One of the job's, which says what it does; its log stays in the folder."""
        logs = self.folder / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{request['TrainingJobName']}.log"
        log.write_text("", encoding="utf-8")
        self.jobs.append(request["TrainingJobName"])

        def on_line(line: str) -> None:
            lines.append(line)
            with log.open("a", encoding="utf-8") as kept:
                kept.write(f"{line}\n")
            console.note(f"   | {line}")

        checkpoints = store.checkpoints(request)
        # Always the same folder: where it is no /opt/ml, what one job's files say of it still holds in the next.
        return started(Container(request, store.fetch, image, self.folder / "ml", checkpoints, on_line))

    def _train_and_kill(self, stage: Stage, launch: Launch, store: LocalStore, image: LocalImage) -> bool:
        """Whether it ended before there was anything to kill."""
        request, lines = _job(launch), list[str]()
        run = store.checkpoints(request) / "run" / "checkpoints"

        def saved() -> bool:
            return any(run.glob(f"checkpoint-*/{CHECKPOINT_MARK}"))

        with self._container(request, store, image, lines) as container:
            ended = container.wait(saved)
            if ended is None:
                container.kill()
                kept = ", ".join(sorted(path.parent.name for path in run.glob(f"*/{CHECKPOINT_MARK}")))
                stage.seen = f"SIGKILL for all its processes once {kept} was there, as when a spot machine is lost"
                if self.left():
                    raise AwsError(f"{self.left()} processes outlived SIGKILL")
                return False
            _check(ended)
            container.write_model(store.model(request))
        stage.skipped = "it trained to its end before it saved a checkpoint; a smaller train.save_steps=N makes one"
        return True

    def _resume(self, stage: Stage, launch: Launch, store: LocalStore, image: LocalImage) -> None:
        request, lines = _job(launch), list[str]()
        with self._container(request, store, image, lines) as container:
            _check(container.wait())
            container.write_model(store.model(request))
        found = next((line for line in lines if line.startswith("continuing from ")), None)
        if found is None:
            raise RunError("the second attempt began anew", "what did the first leave in checkpoints/run?")
        results = files.read_json(self.folder / "ml" / "model" / "run" / "all_results.json")
        stage.seen = f"{found}, ended at step {results['global_step']} with loss {results['train_loss']:.3f}"

    def _evaluate(self, stage: Stage, archive: Path) -> None:
        """What a person does with model.tar.gz: unpacks and measures it."""
        trained = self._new("trained")
        with tarfile.open(archive) as packed:
            packed.extractall(trained, filter="data")
        run = trained / "run"
        # The run names data and base by their paths in the container. Here is what a person says in place of them.
        data, base = self.recipe.data.path, self.recipe.model.name_or_path
        own = ["--set", f"data.path={data}"] if data is not None and Path(data).is_absolute() else []
        if base is not None and Path(base).is_absolute() and not (run / BASE).exists():
            (run / BASE).symlink_to(base)
        told = own_commands.run(self.folder, "evaluate", str(run), *own, "--output", str(self.folder / "evaluation"))
        scores = told["systems"][0]["scores"]
        self.scores = {name: score["value"] for name, score in scores.items()}
        stage.seen = ", ".join(f"{name} {value:.1f}" for name, value in self.scores.items())
        stage.seen += f" on {told['systems'][0]['examples']} dialogues, with model.tar.gz unpacked"

    def _compile_launch(self, trained: Launch, code: list[Channel]) -> Launch:
        """What `aws compile RUN --target cpu` would send after that training."""
        given = {c["ChannelName"]: c["DataSource"]["S3DataSource"]["S3Uri"] for c in _job(trained)["InputDataConfig"]}
        output = f"{_job(trained)['OutputDataConfig']['S3OutputPath']}/{trained.calls[0].name}/output/model.tar.gz"
        base = {requests.MODEL: given[requests.MODEL]} if requests.MODEL in given else {}
        return training.job_launch(
            trained.run,
            "compile",
            requests.compile_arguments("cpu"),
            self._options,
            code,
            trained.place.site,
            addresses={requests.TRAINED: output, **base},
        )

    def _compile(self, stage: Stage, launch: Launch, store: LocalStore, image: LocalImage) -> Path:
        request = _job(launch)
        graphs, own = store.checkpoints(request) / "cache", files.cache_folder()
        lent = share_graphs(own, graphs)
        with self._container(request, store, image, []) as container:
            _check(container.wait())
            container.write_model(store.model(request))
        made = share_graphs(graphs, own)
        stage.seen = f"by the compile job's request, for this CPU; {made} graphs compiled"
        stage.seen += f" beside {lent} that this machine had in its cache" if lent else ""
        return store.model(request)

    def _package(self, stage: Stage, made: Path) -> Path:
        model = self.folder / "model.tar.gz"
        shutil.copy(made, model)
        with tarfile.open(model) as packed:
            names = packed.getnames()
        if "serving.properties" not in names:
            raise AwsError(f"the compile job's model.tar.gz is none that an endpoint takes: it holds {names[:8]}")
        stage.seen = f"the job's model.tar.gz, {console.size(model.stat().st_size)}, is what an endpoint loads"
        return model

    def _serve(self, stage: Stage, model: Path) -> None:
        from neuron_sum.data.sources import load_dataset

        installed = subprocess.run(
            [sys.executable, "-m", "serving.djl"], capture_output=True, text=True, check=False, cwd=self.folder
        )
        if installed.returncode:
            stage.skipped = f"no DJL Serving here: {own_commands.error_in(installed.stderr)[0]}"
            return
        data = load_dataset(self.recipe.data)
        self.dialogue = (data["test"] or data["validation"] or data["train"])[0].dialogue
        with own_commands.server(model, self.folder) as url:
            self.summary = own_commands.run(self.folder, "request", url, stdin=self.dialogue)["summary_text"]
        console.note(f"   dialogue: {self.dialogue}\n   summary:  {self.summary}")
        stage.seen = f"DJL Serving answered: {self.summary}"


def _job(launch: Launch) -> Request:
    return launch.calls[0].request


def _check(ended: Ended | None) -> None:
    """Raises what a container died of."""
    assert ended is not None  # it was waited for without another condition
    if ended.status != "Completed":
        told = re.sub(r"\s*\n\s*", " | ", (ended.reason or f"it was {ended.status.lower()}").strip())
        raise AwsError(
            f"the container ended with exit code {ended.code}: {told}",
            "its last lines are above; --keep-files FOLDER keeps its log and all else: neuron-sum explain "
            "FOLDER/logs/JOB.log",
        )
