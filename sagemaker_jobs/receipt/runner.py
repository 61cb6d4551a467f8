"""Carries out the steps of a receipt within its cap, keeps their results, and always cleans up."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from neuron_sum import console
from neuron_sum.errors import NeuronSumError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import collect_denials
from sagemaker_jobs.aws.ledger import LABELS, Ledger
from sagemaker_jobs.aws.logs import LostContact
from sagemaker_jobs.cost.plan import Plan
from sagemaker_jobs.receipt import costs
from sagemaker_jobs.receipt.record import Attempt, Observed, Record, RecordFile, Result, failed, observed, timestamp
from sagemaker_jobs.receipt.steps import ALL, BILL, DOWN, LAST, STEPS, Step


@dataclass(frozen=True)
class Actions:
    """What the steps do in the account.

    Attributes:
        perform: Carries out a step of STEPS within the rest of the cap in USD, and returns its result.
        resume: Continues the interrupted attempt of a step, by its index; returns None if nothing of it continues.
        remove: Deletes the resources of a run, except artifacts.
        read_bill: Returns the result of the step `bill`; None before its day.
    """

    perform: Callable[[Step, float], Result]
    resume: Callable[[Step, int], Result | None]
    remove: Callable[[str], None]
    read_bill: Callable[[], Result | None]


@dataclass
class Runner:
    """One run of the command.

    Attributes:
        file: The state file.
        record: The receipt.
        account: The account and region.
        plans: The maximum cost of each step.
        max_usd: The cap over all steps.
        actions: The calls of the steps.
        not_run: The reason for which a step did not run, by its name.
        cleaned_up: Whether the deletion of all resources at the end was tried.
    """

    file: RecordFile
    record: Record
    account: Account
    plans: Mapping[str, Plan]
    max_usd: float
    actions: Actions
    not_run: dict[str, str] = field(default_factory=dict)
    cleaned_up: bool = False

    def run(self) -> None:
        """Carry out the steps that have no result, then delete what they created, whatever happened.

        Raises:
            AwsError: If AWS cannot be reached any more, once everything was tried.
            ResourceError: If the state cannot be written.
        """
        ledger = self.account.ledger
        try:
            for step in STEPS:
                if step.name not in self.record.results:
                    self._step(step, ledger)
        finally:
            self._clean_up(ledger)
        if BILL not in self.record.results:
            self._bill()

    @property
    def cells(self) -> dict[str, Observed]:
        """The result of every cell; open for those that were not observed."""
        found: dict[str, Observed] = {}
        for step in (*STEPS, *LAST):
            result = self.record.results.get(step.name)
            found |= observed(step, "not observed" if result is not None else self.not_run.get(step.name, "not run"))
            found |= {} if result is None else result.cells
        return found

    def _step(self, step: Step, ledger: Ledger) -> None:
        record, worst_usd = self.record, self.plans[step.name].worst_usd
        if blocking := [name for name in step.needs if not record.done(name)]:
            self.not_run[step.name] = f"not run, because it needs the step {blocking[0]}"
            return
        if (earlier := record.last_attempt(step.name)) is not None:
            console.note(f"step {step.name}: looking for what an interrupted attempt has started")
            result = self._try(step, earlier, lambda: self.actions.resume(step, earlier))
            self._settle(ledger)
            if result is not None:
                self._keep(step, result)
                return
        left_usd = self.max_usd - record.reserved_usd
        if worst_usd > left_usd:
            reason = f"it may cost ${worst_usd:.2f}, and ${max(left_usd, 0):.2f} of the cap are left"
            self.not_run[step.name] = f"not run, because {reason}"
            console.warn(f"leaving out the step {step.name}: {reason}")
            return
        console.note(f"step {step.name}: {step.what}; at most ${worst_usd:.2f}")
        record.results.pop(BILL, None)  # it would not contain this attempt
        record.attempts.append(Attempt(step=step.name, started=timestamp(), worst_usd=worst_usd))
        self.file.save(record)
        result = self._try(step, len(record.attempts) - 1, lambda: self.actions.perform(step, left_usd))
        assert result is not None  # perform returns a result
        self._keep(step, result)
        self._settle(ledger)

    def _try(self, step: Step, number: int, act: Callable[[], Result | None]) -> Result | None:
        """Carry out a step with its resources marked in the ledger; an error is its result.

        Raises:
            LostContact, Unreached, Refused: If AWS cannot be reached, or does not accept the credentials any more,
                which says nothing about the step.
        """
        token = LABELS.set(self.record.labels(number))
        try:
            with collect_denials() as denials:
                result = self._result_of(step, act)
            if result is not None and denials:
                result.denied = denials[0]
            return result
        finally:
            LABELS.reset(token)

    def _result_of(self, step: Step, act: Callable[[], Result | None]) -> Result | None:
        try:
            return act()
        except LostContact:  # the job continues, and can be resumed
            raise
        except NeuronSumError as error:
            # Raises if AWS cannot be reached, or the credentials have expired.
            self.account.call("sts", "get_caller_identity")
            return Result(ended=timestamp(), cells=failed(step, error.message))

    def _keep(self, step: Step, result: Result) -> None:
        self.record.results[step.name] = result
        self.file.save(self.record)
        for name, found in result.cells.items():
            console.note(f"  {name}: {found.state}: {found.text}")

    def _settle(self, ledger: Ledger) -> None:
        """Replace the maximum cost of attempts whose resources have ended by the cost of their times."""
        for number, attempt in enumerate(self.record.attempts):
            if attempt.usd is None:
                created, plan = self.record.created(ledger, number), self.plans[attempt.step]
                try:
                    attempt.usd = costs.billed_usd(self.account, attempt.started, created, plan)
                except NeuronSumError as error:
                    console.note(f"counting the maximum cost of {attempt.step}: {error.message}")
        self.file.save(self.record)

    def _clean_up(self, ledger: Ledger) -> None:
        """Delete the resources of all attempts; what a step has left running for another one is then missing.

        Nothing is written before the deletion, so that it does not depend on the disk.
        """
        results = self.record.results
        for step in STEPS:
            if step.follower is not None and step.follower not in results and self.record.done(step.name):
                del results[step.name]
        results.pop(DOWN, None)
        failures: list[NeuronSumError] = []
        runs = dict.fromkeys(entry.run for entry in self.record.created(ledger))
        with collect_denials() as denials:
            for run in runs:
                try:
                    self.actions.remove(run)
                except NeuronSumError as error:
                    failures.append(error)
        self.cleaned_up = True
        self._settle(ledger)
        denied = [*(result.denied for result in results.values() if result.denied is not None), *denials]
        cells = {
            "nothing left": Observed(state="passed", text="nothing remains"),
            "permissions": Observed(state="passed", text="no call was denied"),
        }
        if not runs:
            cells["nothing left"] = Observed(state="open", text="nothing was created")
        elif failures:
            cells["nothing left"] = Observed(state="failed", text="; ".join(error.message for error in failures))
        if denied:
            cells["permissions"] = Observed(state="failed", text=denied[0])
        elif not results:
            cells["permissions"] = Observed(state="open", text="nothing ran")
        self._keep(ALL[DOWN], Result(ended=timestamp(), cells=cells))

    def _bill(self) -> None:
        try:
            bill = self.actions.read_bill()
        except NeuronSumError as error:
            self.not_run[BILL] = f"not read: {error.message}"
            console.note(f"the bill was {self.not_run[BILL]}")
            return
        if bill is not None:
            self._keep(ALL[BILL], bill)
