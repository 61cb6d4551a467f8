"""A build of CodeBuild's until its end: its phases and its log, as they come; and what its end means."""

import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from neuron_sum.console import duration
from neuron_sum.errors import AwsError
from neuron_sum.platform.prices import Price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.errors import ignore_missing
from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.logs import Log, known_cause, read_with_retry
from sagemaker_jobs.aws.names import Run
from sagemaker_jobs.cleanup.kinds import KINDS

RUNS, SUCCEEDED = "IN_PROGRESS", "SUCCEEDED"
WHY = {
    "TIMED_OUT": "it took longer than --max-minutes, or waited too long for a machine",
    "STOPPED": "it was stopped",
    "FAULT": "CodeBuild itself failed",
}
LOOKS_FOR_A_NEW_BUILD = 20


def of_run(account: Account, run: str) -> str | None:
    """The newest build of a run; None if it has none, or its project is gone.

    Raises:
        AwsError: If AWS cannot be asked.
    """
    listing = account.pages(
        "codebuild", "list_builds_for_project", "ids", projectName=Run(run, "").name("build"), sortOrder="DESCENDING"
    )
    with ignore_missing():
        return next((str(identity) for identity in listing), None)
    return None


def started(account: Account, run: str, say: Callable[[str], None], every_s: float) -> str:
    """The build that was started just now, once CodeBuild lists it.

    Raises:
        LostContact: If CodeBuild cannot be asked.
        AwsError: If it does not.
    """
    for _ in range(LOOKS_FOR_A_NEW_BUILD):
        found = read_with_retry(lambda: of_run(account, run), f"the build of {run}", say, every_s)
        if found is not None:
            return found
        time.sleep(every_s)
    raise AwsError(f"CodeBuild lists no build of {run}", f"neuron-sum aws status {run}")


def follow(
    account: Account, identity: str, say: Callable[[str], None], *, every_s: float, price: Price | None = None
) -> dict[str, Any]:
    """Waits for a build's end and tells what happens.

    Args:
        account: Where it runs.
        identity: The build's: its project's name and a number of its own.
        say: Is told each phase, and each line of the log.
        every_s: How often to look.
        price: Of its machine, to say what it has cost by now.

    Returns:
        What BatchGetBuilds says of the build, which succeeded.

    Raises:
        LostContact: If CodeBuild cannot be asked any more while it runs.
        AwsError: If it did not, with CodeBuild's reason and the known cause in its log.
    """
    log: Log | None = None
    before = ""
    while True:
        found = read_with_retry(
            lambda: account.call("codebuild", "batch_get_builds", ids=[identity])["builds"], identity, say, every_s
        )
        if not found:
            raise AwsError(f"no build {identity} in {account.region}", "neuron-sum aws status")
        [build] = found
        if (now := f"{build.get('currentPhase', 'SUBMITTED')} ({build['buildStatus']})") != before:
            before = now
            passed = _seconds(build)
            cost = f", at most ${price.cost(passed / 3600):.2f} by now" if price else ""
            say(f"{build['projectName']}: {now} after {duration(passed)}{cost}")
        logs = build.get("logs") or {}
        if log is None and logs.get("groupName") and logs.get("streamName"):  # there are none before a machine is
            log = Log(account, logs["groupName"], logs["streamName"])
        if log is not None:
            log.print_new(say)
        if build["buildStatus"] != RUNS:
            break
        time.sleep(every_s)
    if build["buildStatus"] == SUCCEEDED:
        return dict(build)
    raise _unsuccessful(build, log)


def minutes(build: dict[str, Any]) -> float:
    """How long a build took."""
    return _seconds(build) / 60


def clear(account: Account, ledger: Ledger, run: str) -> None:
    """Deletes the project and the role of a run whose image is built: nothing needs them any more.

    Args:
        account: Where.
        ledger: Of it; what is gone is noted.
        run: Its id.

    Raises:
        AwsError: If AWS refuses; `aws down` deletes what is left.
    """
    delete = {kind.name: kind.delete for kind in KINDS}
    noted = {(entry.kind, entry.name) for entry in ledger.open(run)}  # none on another machine than the one that began
    for kind, name in (("build-project", Run(run, "").name("build")), ("role", Run(run, "").name("build-role"))):
        delete[kind](account, name)
        if (kind, name) in noted:
            ledger.note("gone", kind, name, run)


def _seconds(build: dict[str, Any]) -> float:
    end = build.get("endTime") or datetime.now(timezone.utc)
    return max(float((end - build["startTime"]).total_seconds()), 0.0)


def _unsuccessful(build: dict[str, Any], log: Log | None) -> AwsError:
    told = [
        f"{phase['phaseType']}: {context['message']}"
        for phase in build.get("phases", [])
        for context in phase.get("contexts", [])
        if context.get("message")
    ]
    status = build["buildStatus"]
    reason = " ".join("; ".join([*([WHY[status]] if status in WHY else []), *told]).split()) or "CodeBuild says no more"
    cause = known_cause(reason, log.lines if log else [])
    known = f"; {cause.name}: {cause.cause}" if cause else ""
    where = f"aws logs tail {log.group} --log-stream-names {log.prefix}" if log else "there is no log"
    return AwsError(f"{build['projectName']} {status}: {reason:.600}{known}", cause.remedy if cause else where)
