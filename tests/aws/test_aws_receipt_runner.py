"""The runner of `neuron-sum aws receipt` with steps of the tests: what it reports, and that it always cleans up."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from neuron_sum.errors import AwsError, ResourceError
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import Refused, note_denial
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import AwsContext
from sagemaker_jobs.cleanup.down import delete
from sagemaker_jobs.cleanup.inventory import Inventory
from sagemaker_jobs.cleanup.kinds import Kind, Resource
from sagemaker_jobs.cost.plan import Plan
from sagemaker_jobs.receipt.record import Observed, RecordFile, Result, timestamp
from sagemaker_jobs.receipt.runner import Actions, Runner
from sagemaker_jobs.receipt.steps import ALL, BILL, DEVICE, SETUP, STEPS, TRAIN, Step

SITE = AwsContext("123456789012", "us-east-1")
RUN = "receipt-261130-0000-abcd"
Act = Callable[[Step], None]


@pytest.fixture(autouse=True)
def state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEURON_SUM_STATE", str(tmp_path / "state"))


class FakeAccount:
    """An account with a ledger.

    Args:
        identity: Called for GetCallerIdentity.
    """

    every_s = 0.0

    def __init__(self, identity: Callable[[], None] = lambda: None) -> None:
        self.ledger, self.identity = Ledger(SITE), identity

    def call(self, service: str, operation: str, **request: Any) -> dict[str, Any]:
        assert operation == "get_caller_identity"
        self.identity()
        return {}


def passed(step: Step) -> Result:
    return Result(ended=timestamp(), cells={cell.name: Observed(state="passed", text="") for cell in step.cells})


def runner(folder: Path, act: Act, account: FakeAccount, removed: list[str], remove: Act | None = None) -> Runner:
    """A new receipt whose steps pass after `act`; they cost nothing."""

    def perform(step: Step, left_usd: float) -> Result:
        act(step)
        return passed(step)

    def deleting(run: str) -> None:
        removed.append(run)
        if remove is not None:
            remove(ALL[SETUP])

    actions = Actions(perform, lambda step, number: None, deleting, lambda: None)
    file = RecordFile(folder / "receipt")
    record = file.load(SITE, resume=False)
    return Runner(file, record, cast(Account, account), {step.name: Plan(()) for step in STEPS}, 5.0, actions)


def creates(account: FakeAccount) -> Act:
    return lambda step: account.ledger.note("intent", "model", f"{RUN}-model", RUN) if step.name == TRAIN else None


def test_a_full_disk_does_not_prevent_the_deletion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    account, removed = FakeAccount(), list[str]()
    made = runner(tmp_path, creates(account), account, removed)
    save = RecordFile.save

    def full(self: RecordFile, record: Any) -> None:
        if account.ledger.entries():
            raise ResourceError("the disk is full", None)
        save(self, record)

    monkeypatch.setattr(RecordFile, "save", full)
    with pytest.raises(ResourceError):
        made.run()
    assert removed == [RUN] and made.cleaned_up


def test_expired_credentials_end_the_receipt_without_a_result(tmp_path: Path) -> None:
    expired = Refused("AWS refused it: the token has expired", None, "ExpiredToken")

    def refuse(*_: Step) -> None:
        raise expired

    account, removed = FakeAccount(refuse), list[str]()
    made = runner(tmp_path, lambda step: refuse() if step.name == DEVICE else creates(account)(step), account, removed)
    with pytest.raises(Refused) as raised:
        made.run()
    assert raised.value is expired and removed == [RUN]
    assert TRAIN in made.record.results and DEVICE not in made.record.results
    assert made.cells["device receipt"].state == "open"


def test_only_the_first_cell_of_a_step_with_an_error_has_failed(tmp_path: Path) -> None:
    def fail(step: Step) -> None:
        if step.name == DEVICE:
            raise AwsError("no capacity", None)

    made = runner(tmp_path, fail, FakeAccount(), [])
    made.run()
    assert made.cells["device receipt"] == Observed(state="failed", text="no capacity")
    driver = made.cells["driver of training hosts"]
    assert driver == Observed(state="open", text="not observed, because device receipt failed")
    assert made.cells["nothing left"] == Observed(state="open", text="nothing was created")


def in_a_step(step: Step) -> None:
    if step.name == TRAIN:
        note_denial("not authorized to list quotas")


def never(step: Step) -> None:
    pass


@pytest.mark.parametrize(("act", "remove"), [(in_a_step, never), (never, in_a_step), (never, never)])
def test_denied_calls_without_which_a_step_goes_on_are_reported(tmp_path: Path, act: Act, remove: Act) -> None:
    account = FakeAccount()

    def both(step: Step) -> None:
        act(step)
        creates(account)(step)

    made = runner(tmp_path, both, account, [], lambda _: remove(ALL[TRAIN]))
    made.run()
    expected = "passed" if act is remove else "failed"
    assert made.cells["permissions"].state == expected and made.cells["nothing left"].state == "passed"


def test_a_new_attempt_drops_the_bill_of_earlier_ones(tmp_path: Path) -> None:
    made = runner(tmp_path, never, FakeAccount(), [])
    made.run()
    made.record.results[BILL] = passed(ALL[BILL])
    made.run()
    assert BILL in made.record.results, "no new attempt"
    del made.record.results[DEVICE]
    made.run()
    assert BILL not in made.record.results


class FakeKind(Kind):
    """A kind that is billed, and gone after its deletion."""

    paid = True
    needs = ()

    def __init__(self, name: str) -> None:
        self.name, self.deleted = name, list[str]()

    def list_names(self, account: Account, run: str | None) -> Iterator[tuple[str, str]]:
        yield from ()

    def describe(self, account: Account, name: str, run: str) -> Resource | None:
        return None

    def delete(self, account: Account, name: str) -> None:
        self.deleted.append(name)


def test_a_deletion_continues_if_the_disk_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: str) -> None:
        raise ResourceError("the disk is full", None)

    monkeypatch.setattr(Ledger, "note", full)
    scaling, endpoint = FakeKind("scaling-target"), FakeKind("endpoint")
    found = tuple((kind, Resource(kind.name, "x", RUN, "there", 0.0)) for kind in (scaling, endpoint))
    gone = delete(cast(Account, FakeAccount()), Inventory(found))
    assert [each.kind for each in gone] == ["scaling-target", "endpoint"] and scaling.deleted == endpoint.deleted
