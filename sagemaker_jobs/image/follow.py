"""Follow a CodeBuild build until it ends, and explain a failure."""

import time
from datetime import datetime, timezone
from typing import Any

from neuron_sum.errors import AwsError
from neuron_sum.platform.prices import Price
from sagemaker_jobs.aws.account import Account
from sagemaker_jobs.aws.logs import State, explained, read_with_retry, watch
from sagemaker_jobs.cleanup.kinds import builds_of

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


def started(account: Account, run: str) -> str:
    """Wait until CodeBuild lists the build that was just started, and return its id.

    Raises:
        LostContact: If CodeBuild cannot be reached.
        AwsError: If CodeBuild does not list the build.
    """
    for _ in range(NEW_BUILD_POLLS):
        found = read_with_retry(account, lambda: of_run(account, run), f"the build of {run}")
        if found is not None:
            return found
        time.sleep(account.every_s)
    raise AwsError(f"CodeBuild lists no build of {run}", f"Run `{account.command('status', run)}`.")


def follow(account: Account, identity: str, *, price: Price | None = None) -> tuple[dict[str, Any], float]:
    """Wait for a build to end and log its progress.

    Args:
        account: The account that the build runs in.
        identity: The id of the build, which consists of the project's name and a unique suffix.
        price: The price of the build machine, to log the cost so far.

    Returns:
        The successful build as BatchGetBuilds describes it, and its seconds.

    Raises:
        LostContact: If CodeBuild cannot be reached any more while the build runs.
        AwsError: If the build failed, with CodeBuild's reason and the known cause from its log.
    """

    def read() -> tuple[dict[str, Any], State]:
        found = account.call("codebuild", "batch_get_builds", ids=[identity])["builds"]
        if not found:
            raise AwsError(f"no build {identity} in {account.region}", f"Run `{account.command('status')}`.")
        [build] = found
        text, logs = f"{build.get('currentPhase', 'SUBMITTED')} ({build['buildStatus']})", build.get("logs") or {}
        passed = (build.get("endTime") or datetime.now(timezone.utc)) - build["startTime"]
        # The log is absent until a machine starts.
        log = (logs["groupName"], logs["streamName"]) if logs.get("groupName") and logs.get("streamName") else None
        return build, State(text, build["buildStatus"] != "IN_PROGRESS", max(passed.total_seconds(), 0.0), log)

    build, state, log = watch(account, identity.partition(":")[0], read, price=price)
    status = build["buildStatus"]
    if status == "SUCCEEDED":
        return build, state.seconds
    messages = [
        f"{phase['phaseType']}: {context['message']}"
        for phase in build.get("phases", [])
        for context in phase.get("contexts", [])
        if context.get("message")
    ]
    reasons = [*([WHY[status]] if status in WHY else []), *messages]
    reason = " ".join("; ".join(reasons).split()) or "CodeBuild reports no reason"
    tail = "The build has no log."
    if log:
        tail = f"Run `{account.tail_command(log.group, '--log-stream-names', log.prefix)}`."
    raise AwsError(*explained(f"{build['projectName']} {status}: {reason:.600}", reason, log, tail))
