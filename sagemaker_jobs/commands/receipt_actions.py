"""The steps of `aws receipt`: each calls the functions of the commands, as a user would."""

import inspect
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from neuron_sum import console, files
from neuron_sum.errors import AwsError, DataError, NeuronSumError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused, Unreached, note_denial
from sagemaker_jobs.aws.ledger import Entry
from sagemaker_jobs.aws.names import Run, new_run
from sagemaker_jobs.cleanup.kinds import builds_of
from sagemaker_jobs.commands.down import down
from sagemaker_jobs.commands.endpoints import deploy
from sagemaker_jobs.commands.image import image
from sagemaker_jobs.commands.jobs import carry_out, compile_run, train
from sagemaker_jobs.commands.setup import setup
from sagemaker_jobs.commands.status import status
from sagemaker_jobs.cost import bill
from sagemaker_jobs.cost.plan import Plan
from sagemaker_jobs.endpoint import lifecycle
from sagemaker_jobs.image import registry
from sagemaker_jobs.jobs import inputs, training
from sagemaker_jobs.jobs import requests as job_requests
from sagemaker_jobs.jobs.wheelhouse import wheels_for
from sagemaker_jobs.launch import quotas
from sagemaker_jobs.launch.options import JobOptions, StartOptions
from sagemaker_jobs.launch.schedules import EVERY_S, LATE_S, RETRIES, rejected_calls
from sagemaker_jobs.receipt import costs, steps
from sagemaker_jobs.receipt.record import Observed, Record, Result, State, timestamp
from sagemaker_jobs.receipt.steps import Step
from sagemaker_jobs.stack.stack import describe, is_usable, require_stack

DIALOGUE = "#Person1#: The meeting is at ten, not at nine.\n#Person2#: Thank you, I will tell the others.\n"
BEFORE_S = 5
"""Seconds before the expiry at which the endpoint is checked to exist."""
PATIENCE_S = EVERY_S + LATE_S + 600
"""Seconds after the expiry until it counts as failed: two calls of the schedule, and the deletion of instances."""
REJECTED_S = EVERY_S + LATE_S + int(RETRIES["MaximumEventAgeInSeconds"])
"""Seconds after the expiry until the second call of the schedule, which AWS rejects, must be in the queue."""
COMMANDS = "neuron_sum.commands"


@dataclass(frozen=True)
class AwsActions:
    """The steps in an account.

    Attributes:
        account: The account and region.
        record: The receipt.
        folder: The folder of the receipt.
        plans: The plan of each step.
        device_size: The size of the device receipt.
        device_hours: The maximum run time of its job in hours.
        every_s: Seconds between status polls.
        wheelhouse: The wheels of jobs; None: built when the first job needs them.
    """

    account: Account
    record: Record
    folder: Path
    plans: Mapping[str, Plan]
    device_size: str
    device_hours: float
    every_s: float
    wheelhouse: Path | None = None

    def perform(self, step: Step, max_usd: float) -> Result:
        """Carry out a step.

        Raises:
            NeuronSumError: If it fails.
        """
        handlers: dict[str, Callable[[Step, StartOptions], Result]] = {
            steps.SETUP: self._setup,
            steps.ACCOUNT: self._read_account,
            steps.IMAGE_CPU: self._image,
            steps.TRAIN: self._train,
            steps.COMPILE_CPU: self._compile,
            steps.ENDPOINT: self._endpoint,
            steps.DEVICE: self._device,
            steps.IMAGE_INF2: self._image,
            steps.COMPILE_INF2: self._compile,
            steps.INF2: self._inf2,
            steps.EXPIRY: self._expiry,
        }
        return handlers[step.name](step, StartOptions(max_usd, self.account.region, every=self.every_s))

    def resume(self, step: Step, number: int) -> Result | None:
        """Follow the job or build of an interrupted attempt, or delete its endpoint.

        Args:
            step: The step.
            number: The index of the attempt.

        Returns:
            The result; None if the step must be repeated.

        Raises:
            NeuronSumError: If the job or build fails, or AWS refuses.
        """
        created = self.record.created(self.account.ledger, number)
        if job := _of_kind(created, "training-job"):
            found = self.account.find("sagemaker", "describe_training_job", TrainingJobName=job.name)
            # A device receipt that reached the time limit of its job has results.
            limited = step.name == steps.DEVICE and (found or {}).get("SecondaryStatus") == "MaxRuntimeExceeded"
            if found is None or not (limited or found["TrainingJobStatus"] in ("InProgress", "Completed")):
                return None
            if step.name == steps.DEVICE:
                return self._device_result(job.run, lambda: self._follow(job.run))
            return self._ended_job(step, self._follow(job.run))
        if build := _of_kind(created, "build"):
            states = [found["buildStatus"] for _, found in builds_of(self.account, build.run)]
            if not states or states[0] not in ("IN_PROGRESS", "SUCCEEDED"):
                return None
            return self._built(step, self._follow(build.run))
        for run in dict.fromkeys(entry.run for entry in created if step.name in costs.HOSTINGS):
            self.remove(run)
        return None

    def remove(self, run: str) -> None:
        """Delete the resources of a run, except artifacts.

        Raises:
            AwsError: If resources remain.
        """
        _call(down, run=run, region=self.account.region, every=self.every_s)

    def read_bill(self) -> Result | None:
        """The costs of the days of the receipt; None until Cost Explorer has them.

        Raises:
            AwsError: If AWS refuses, or cannot be reached.
        """
        ends = [result.ended for name, result in self.record.results.items() if name != steps.DOWN]
        if not self.record.attempts or not ends:
            return None
        first, last = (datetime.fromisoformat(time) for time in (self.record.started, max(ends)))
        ready = last + timedelta(days=bill.DELAY_DAYS)
        if _now() < ready:
            console.note(f"Cost Explorer has the bill from about {ready:%Y-%m-%d %H:%M} UTC; --resume then adds it")
            return None
        found = bill.read(self.account, first.date(), last.date())
        if not found.usd:
            raise AwsError("Cost Explorer has no costs of these days yet", None)
        services = ", ".join(f"{name} ${usd:.2f}" for name, usd in sorted(found.usd.items()))
        text = (
            f"${found.total_usd:.2f}{', estimated' if found.estimated else ''}, for all of the account on these days "
            f"({services}); at most ${self.record.worst_usd:.2f} by the receipt"
        )
        state: State = "passed" if found.total_usd <= self.record.worst_usd else "different"
        return _result({"bill": Observed(state=state, text=text)})

    @cached_property
    def _wheels(self) -> Path | None:
        return wheels_for(self.wheelhouse, None, dry_run=False)

    def _created(self, step: Step) -> list[Entry]:
        """The resources of the present attempt of a step."""
        number = self.record.last_attempt(step.name)
        assert number is not None  # the runner records the attempt before it carries out the step
        return self.record.created(self.account.ledger, number)

    def _follow(self, run: str) -> Mapping[str, Any]:
        return _call(status, run=run, follow=True, region=self.account.region, every=self.every_s)

    def _setup(self, step: Step, start: StartOptions) -> Result:
        options = {"region": self.account.region, "every": self.every_s}
        described = describe(self.account)
        if described is None or not is_usable(described):  # missing, broken, or its creation was interrupted
            outcome = _call(setup, **options)["outcome"]
            return _result({step.cells[0].name: Observed(state="passed", text=f"{outcome} by CloudFormation")})
        try:
            _call(setup, check=True, **options)
        except (Refused, Unreached):
            raise
        except AwsError as error:  # an older stack can be used
            return _result({step.cells[0].name: Observed(state="different", text=error.message)})
        return _result({step.cells[0].name: Observed(state="passed", text="equals the template")})

    def _read_account(self, step: Step, start: StartOptions) -> Result:
        items = [item for plan in self.plans.values() for item in plan.items if item.kind != "build"]
        sources = dict.fromkeys(item.price.source for item in items if item.price is not None)
        live = all(source.startswith("AWS Price List") for source in sources)
        prices = Observed(state="passed" if live else "different", text="; ".join(sources))
        stack = require_stack(self.account)
        needed, missing, small = 0, list[str](), list[str]()
        for name in self.plans:
            for service, wanted in quotas.needed(costs.calls(name, stack, self.device_hours)).items():
                found = quotas.listed(self.account, service, wanted)
                needed += len(wanted)
                missing += [quota for quota in wanted if quota not in found]
                small += [
                    f"{quota} is {found[quota]['Value']:g} (needed: {count})"
                    for quota, count in wanted.items()
                    if quota in found and found[quota]["Value"] < count
                ]
        text = f"{needed - len(missing)} of {needed} listed"
        text += f"; not listed: {', '.join(missing)}" if missing else ""
        text += f"; too small: {', '.join(small)}" if small else ""
        names = Observed(state="different" if missing else "passed", text=text)
        return _result({"prices": prices, "quota names": names})

    def _image(self, step: Step, start: StartOptions) -> Result:
        options = vars(start)
        found = _call(image, target=costs.TARGETS[step.name], max_minutes=costs.BUILD_MINUTES, **options)
        return self._built(step, found)

    def _built(self, step: Step, found: Mapping[str, Any]) -> Result:
        text = f"built in {found['minutes']:g} minutes" if found["built"] else "exists already"
        observed = Observed(state="passed", text=f"{text}, {console.size(found['bytes'])}")
        return _result({step.cells[0].name: observed})

    def _train(self, step: Step, start: StartOptions) -> Result:
        return self._ended_job(step, _call(train, recipe=costs.RECIPE, **self._job_options(start)))

    def _compile(self, step: Step, start: StartOptions) -> Result:
        target, run = "cpu" if step.name == steps.COMPILE_CPU else "inf2", self.record.fact(steps.TRAIN, "run")
        return self._ended_job(step, _call(compile_run, source=run, target=target, **self._job_options(start)))

    def _job_options(self, start: StartOptions) -> dict[str, Any]:
        options = {"instance": costs.CPU, "max_hours": costs.JOB_HOURS, "wheelhouse": self._wheels}
        return {**options, **vars(start)}

    def _device(self, step: Step, start: StartOptions) -> Result:
        run, stack = new_run("receipt"), require_stack(self.account)
        image = registry.pin(self.account, stack, job_requests.training_image(stack.site.region))
        options = JobOptions(instance=costs.TRAINIUM, max_hours=self.device_hours, image=image)
        launch = training.job_launch(
            run,
            "receipt",
            job_requests.receipt_arguments(costs.TRAINIUM, self.device_size),
            options,
            inputs.code_channels(self._wheels),
            stack,
        )

        def carry_out_step() -> None:
            with console.collect_results():
                carry_out(lambda *_: launch, (costs.TRAINIUM,), self.account, start, options, lambda _: "")

        return self._device_result(run.id, carry_out_step)

    def _ended_job(self, step: Step, ended: Mapping[str, Any]) -> Result:
        """Read what AWS reports of the completed job of a step."""
        job = self.account.call("sagemaker", "describe_training_job", TrainingJobName=ended["job"])
        billed, ran = job.get("BillableTimeInSeconds"), job.get("TrainingTimeInSeconds")
        seconds = costs.billed_seconds(job) or 0.0
        text = f"completed after {console.duration(seconds)}"
        cells = {step.cells[0].name: Observed(state="passed", text=text)}
        if step.name == steps.TRAIN:
            if billed is None or ran is None:
                found = Observed(state="different", text="AWS reports no billed time")
            else:
                extra_s = billed - ran
                state: State = "passed" if extra_s <= costs.AFTER_RUN_S else "different"
                found = Observed(state=state, text=f"{billed} s billed, {ran} s run time")
            cells["billed time"] = found
        return _result(cells, run=ended["run"], model=ended["model"] if "model" in ended else ended["output"])

    def _device_result(self, run: str, wait: Callable[[], object]) -> Result:
        """The counts of the device receipt; a job that was stopped has those of the steps that had ended."""
        failure: NeuronSumError | None = None
        try:
            wait()
        except AwsError as error:
            failure = error
        stack = require_stack(self.account)
        address = f"{stack.checkpoints(Run(run, ''), 'receipt')}/receipt"
        folder = self.folder / "device"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            for name in ("receipt.json", "receipt.md"):
                (folder / name).write_bytes(self.account.read(f"{address}/{name}"))
        except AwsError:
            if failure is not None:
                raise failure from None
            raise
        content = files.read_json(folder / "receipt.json", DataError)
        found = content["cells"]
        counts = {state: sum(cell["state"] == state for cell in found) for state in ("passed", "different", "failed")}
        text = ", ".join(f"{count} {state}" for state, count in counts.items())
        complete = bool(content["complete"]) and failure is None
        if not complete:
            text += f"; not complete{f': {failure.message}' if failure is not None else ''}"
        cells = {"device receipt": Observed(state="passed" if complete else "different", text=text)}
        if driver := next((cell for cell in found if cell["name"] == "driver"), None):
            cells["driver of training hosts"] = Observed(state=driver["state"], text=driver["observed"])
        return _result(cells, run=run)

    def _endpoint(self, step: Step, start: StartOptions) -> Result:
        scaling = Observed(state="passed", text="accepted")
        begun = _now()
        try:
            _call(
                deploy,
                # The newest compile job of the run may be that for Inferentia2.
                sources=[f"receipt-cpu={self.record.fact(steps.COMPILE_CPU, 'model')}"],
                instance=costs.CPU,
                hours=costs.ENDPOINT_HOURS,
                max_instances=costs.MOST_INSTANCES,
                invocations_per_instance=costs.INVOCATIONS,
                **vars(start),
            )
        except AwsError as error:
            endpoint = _of_kind(self._created(step), "endpoint")
            found = lifecycle.describe(self.account, endpoint.name) if endpoint is not None else None
            if found is None or found["EndpointStatus"] != lifecycle.IN_SERVICE:
                raise
            scaling = Observed(state="failed", text=error.message)
        took = console.duration((_now() - begun).total_seconds())
        endpoint = _of_kind(self._created(step), "endpoint")
        assert endpoint is not None  # it is in service
        ends = lifecycle.expiry_at(self.account, Run(endpoint.run, ""))
        assert ends is not None  # `deploy --hours` creates the schedule first
        cells = {
            "CPU endpoint": Observed(state="passed", text=f"in service after {took}"),
            "autoscaling": scaling,
            "answer of the CPU endpoint": self._answer(endpoint.name),
        }
        return _result(cells, run=endpoint.run, endpoint=endpoint.name, ends=ends.isoformat())

    def _inf2(self, step: Step, start: StartOptions) -> Result:
        begun = _now()
        deployed = _call(
            deploy,
            sources=[f"receipt-inf2={self.record.fact(steps.COMPILE_INF2, 'model')}"],
            instance=costs.INFERENTIA,
            hours=costs.INF2_HOURS,
            **vars(start),
        )
        took = console.duration((_now() - begun).total_seconds())
        cells = {
            "inf2 endpoint": Observed(state="passed", text=f"in service after {took}"),
            "answer of the inf2 endpoint": self._answer(deployed["endpoint"]),
        }
        begun = _now()
        try:
            self.remove(deployed["run"])
        except AwsError as error:
            cells["deletion"] = self._failed(error)
        else:
            took = console.duration((_now() - begun).total_seconds())
            cells["deletion"] = Observed(state="passed", text=f"gone after {took}")
        return _result(cells, run=deployed["run"])

    def _answer(self, endpoint: str) -> Observed:
        """Send a dialogue to an endpoint with `neuron-sum request`."""
        [point] = [each for each in entry_points(group=COMMANDS) if each.name == "request"]
        with tempfile.TemporaryDirectory(prefix="neuron-sum-receipt-") as scratch:
            dialogue = Path(scratch) / "dialogue.txt"
            dialogue.write_text(DIALOGUE, encoding="utf-8")
            try:
                answer = _call(point.load(), endpoint=f"sagemaker:{endpoint}@{self.account.region}", file=dialogue)
            except NeuronSumError as error:
                if "AccessDenied" in error.message:  # the client of `request` sends this call
                    note_denial(error.message)
                return self._failed(error)
        summary = json.dumps(answer["summary_text"], ensure_ascii=False)
        return Observed(state="passed", text=f"{answer['output_tokens']} tokens: {summary:.200}")

    def _failed(self, error: NeuronSumError) -> Observed:
        """An error as the result of a cell.

        Raises:
            AwsError: If AWS cannot be reached, or does not accept the credentials any more: the cell stays open.
        """
        self.account.call("sts", "get_caller_identity")
        return Observed(state="failed", text=error.message)

    def _expiry(self, step: Step, start: StartOptions) -> Result:
        facts = self.record.results[steps.ENDPOINT].facts
        name, ends = facts["endpoint"], datetime.fromisoformat(facts["ends"])
        if (before_s := (ends - _now()).total_seconds() - BEFORE_S) > 0:
            console.note(f"waiting for the expiry of {name}: {lifecycle.format_expiry(ends)}")
            time.sleep(before_s)
            if lifecycle.describe(self.account, name) is None:
                return _result(
                    {"expiry": Observed(state="different", text="the endpoint was deleted before its expiry")}
                )
        on_time: State = "passed" if (_now() - ends).total_seconds() <= PATIENCE_S else "different"
        while lifecycle.describe(self.account, name) is not None:
            if (_now() - ends).total_seconds() > PATIENCE_S:
                text = f"the endpoint exists {console.duration(PATIENCE_S)} after its expiry"
                return _result({"expiry": Observed(state="failed", text=text)})
            time.sleep(self.every_s)
        late = console.duration((_now() - ends).total_seconds())
        text = f"found deleted {late} after its expiry"
        text += "" if on_time == "passed" else ", at the first look"
        cells = {"expiry": Observed(state=on_time, text=text)}
        schedule, waited = Run(facts["run"], "").name("expiry"), console.duration(REJECTED_S)
        console.note(f"waiting for the next call of {schedule}, at most {waited} after the expiry")
        while (reason := rejected_calls(self.account)[1].get(schedule)) is None:
            if (_now() - ends).total_seconds() > REJECTED_S:
                text = f"no rejected call was found {waited} after the expiry"
                return _result(cells | {"dead-letter queue": Observed(state="different", text=text)})
            time.sleep(self.every_s)
        return _result(cells | {"dead-letter queue": Observed(state="passed", text=reason)})


def _call(command: Callable[..., object], **options: Any) -> Mapping[str, Any]:
    """Call a command with the defaults of its other options, and return its result instead of printing it.

    Raises:
        NeuronSumError: If the command fails.
    """
    parameters = inspect.signature(command).parameters.values()
    defaults = {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    with console.collect_results() as results:
        command(**{**defaults, **options})
    return results[-1]


def _of_kind(created: list[Entry], kind: str) -> Entry | None:
    return next((entry for entry in reversed(created) if entry.kind == kind), None)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _result(cells: dict[str, Observed], **facts: Any) -> Result:
    return Result(ended=timestamp(), cells=cells, facts=facts)
