"""Follow a CodeBuild build until it ends: print its phases and log, and explain a failure."""

import time
from datetime import datetime, timezone
from typing import Any

from neuron_sum import console
from neuron_sum.console import duration, quote
from neuron_sum.errors import AwsError
from neuron_sum.platform.prices import Price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.logs import Log, known_cause, read_with_retry
from sagemaker_jobs.cleanup.kinds import builds_of

RUNS, SUCCEEDED = "IN_PROGRESS", "SUCCEEDED"
WHY = {
    "TIMED_OUT": "it took longer than --max-minutes, or waited too long for a machine",
    "STOPPED": "it was stopped",
    "FAULT": "CodeBuild failed internally",
}
NEW_BUILD_POLLS = 20


def of_run(account: Account, run: str) -> str | None:
    """The newest build of a run; None if it has no build.

    Raises:
        AwsError: If the request fails.
    """
    return next((str(build["id"]) for _, build in builds_of(account, run)), None)


def started(account: Account, run: str, every_s: float) -> str:
    """Wait until CodeBuild lists the build that was just started, and return its id.

    Raises:
        LostContact: If CodeBuild cannot be reached.
        AwsError: If CodeBuild does not list the build.
    """
    for _ in range(NEW_BUILD_POLLS):
        found = read_with_retry(lambda: of_run(account, run), f"the build of {run}", every_s)
        if found is not None:
            return found
        time.sleep(every_s)
    raise AwsError(f"CodeBuild lists no build of {run}", f"Run `neuron-sum aws status {quote(run)}`.")


def follow(account: Account, identity: str, *, every_s: float, price: Price | None = None) -> dict[str, Any]:
    """Wait for a build to end and log its progress.

    Args:
        account: The account that the build runs in.
        identity: The id of the build, which consists of the project's name and a unique suffix.
        every_s: Seconds between status polls.
        price: The price of the build machine, to log the cost so far.

    Returns:
        The successful build as BatchGetBuilds describes it.

    Raises:
        LostContact: If CodeBuild cannot be reached any more while the build runs.
        AwsError: If the build failed, with CodeBuild's reason and the known cause from its log.
    """
    log: Log | None = None
    before = ""
    while True:
        found = read_with_retry(
            lambda: account.call("codebuild", "batch_get_builds", ids=[identity])["builds"], identity, every_s
        )
        if not found:
            raise AwsError(f"no build {identity} in {account.region}", "Run `neuron-sum aws status`.")
        [build] = found
        if (now := f"{build.get('currentPhase', 'SUBMITTED')} ({build['buildStatus']})") != before:
            before = now
            passed = _seconds(build)
            cost = f", at most ${price.cost(passed / 3600):.2f} by now" if price else ""
            console.note(f"{build['projectName']}: {now} after {duration(passed)}{cost}")
        logs = build.get("logs") or {}
        if log is None and logs.get("groupName") and logs.get("streamName"):  # absent until a machine starts
            log = Log(account, logs["groupName"], logs["streamName"])
        if log is not None:
            log.print_new()
        if build["buildStatus"] != RUNS:
            break
        time.sleep(every_s)
    if build["buildStatus"] == SUCCEEDED:
        return dict(build)
    raise _unsuccessful(build, log)


def minutes(build: dict[str, Any]) -> float:
    """The duration of a build in minutes."""
    return _seconds(build) / 60


def _seconds(build: dict[str, Any]) -> float:
    end = build.get("endTime") or datetime.now(timezone.utc)
    return max(float((end - build["startTime"]).total_seconds()), 0.0)


def _unsuccessful(build: dict[str, Any], log: Log | None) -> AwsError:
    messages = [
        f"{phase['phaseType']}: {context['message']}"
        for phase in build.get("phases", [])
        for context in phase.get("contexts", [])
        if context.get("message")
    ]
    status = build["buildStatus"]
    reason = (
        " ".join("; ".join([*([WHY[status]] if status in WHY else []), *messages]).split())
        or "CodeBuild reports no reason"
    )
    cause = known_cause(reason, log.lines if log else [])
    known = f"; {cause.name}: {cause.cause}" if cause else ""
    tail = f"Run `aws logs tail {log.group} --log-stream-names {log.prefix}`." if log else "The build has no log."
    return AwsError(f"{build['projectName']} {status}: {reason:.600}{known}", cause.remedy if cause else tail)
