"""Injects a fault at every call of a command, and cleans up after each; test_aws_faults.py uses it for every command.

The network fails before a call has its effect, or after it with the reply lost, and stays down; a call is throttled
once; the process is killed before or after a call's effect.
"""

import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.testing
from aws_forks import Forks, Session
from aws_server import FAULTS, AwsServer, Fault
from in_process import neuron_sum

from sagemaker_jobs.aws.ledger import Ledger
from sagemaker_jobs.aws.names import AwsContext

command_of = cache(typer.testing._get_command)
session_of = cache(Session)
"""Shared by all tests of this process: their AWS environment is equal, and a session reads the list of regions."""


def hasten(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uses one session and one parser for all commands of this process, without pauses, and HTTP only for a fault."""

    def directly(request: Any, **_: Any) -> Any:
        return aws.directly(request) if aws.point is None else None

    monkeypatch.setattr("boto3.Session", session_of)
    monkeypatch.setattr(Session, "directly", staticmethod(directly))
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    monkeypatch.setattr("sagemaker_jobs.aws.logs.PATIENCE_S", 0)  # a failed network stays down
    monkeypatch.setattr("sagemaker_jobs.launch.call.RETRY_S", 0)
    monkeypatch.setattr("typer.testing._get_command", command_of)


def modes_of(name: str) -> list[tuple[Fault, ...]]:
    """The failure modes that each test of a command rotates over.

    Args:
        name: The command, which seeds the order of the rotation.

    Returns:
        One rotation over all modes, so that each call fails in one of them; with NEURON_SUM_ALL_FAULTS=1 a separate
        test for each mode, so that each call fails in all of them.
    """
    if os.environ.get("NEURON_SUM_ALL_FAULTS") == "1":
        return [(fault,) for fault in FAULTS]
    return [tuple(random.Random(name).sample(FAULTS, len(FAULTS)))]


@dataclass
class Points:
    """The calls of a command that failed in one mode, and the results.

    Attributes:
        calls: The call that each fault happened to, in their order.
        codes: The number of times that the command ended with each exit code.
        left: The number of resources left after the cleanup, which is also asserted at each point.
    """

    calls: list[str] = field(default_factory=list)
    codes: Counter[int] = field(default_factory=Counter)
    left: int = 0


def every_point(
    aws: AwsServer,
    words: Sequence[str],
    modes: Sequence[Fault],
    folder: Path,
    ready: Callable[[AwsServer], None],
    only: frozenset[str] = frozenset(),
    without: frozenset[str] = frozenset(),
) -> dict[Fault, Points]:
    """Runs a command until each of its calls has failed once, in a new account each time, and clears up after it.

    Args:
        aws: The emulated account; `hasten` was called for it.
        words: The command line.
        modes: The failure modes, in rotation: the n-th call that counts fails in mode n, modulo their number.
        folder: The folder of the ledgers, one for each point.
        ready: Prepares the account for the command and sets in the script how its jobs proceed.
        only: The calls to fail; empty: all. Other calls are the same in another command and tested there.
        without: Calls that the command can do without, or whose lost reply it need not have: it may end with 0.

    Returns:
        The results for each mode.
    """
    found: defaultdict[Fault, Points] = defaultdict(Points)
    number, counted = -1, 0
    while True:
        number += 1
        aws.reset()
        aws.set_up()
        os.environ["NEURON_SUM_STATE"] = str(folder / f"state-{number}")
        ready(aws)
        fault = modes[counted % len(modes)]
        aws.fault, aws.point = fault, number
        code = _killed(aws, words) if fault.startswith("killed") else neuron_sum(*words).exit_code
        if aws.hit is not None and only and aws.hit not in only:
            continue
        if aws.hit is None:  # the command ended before its n-th call: no more points
            assert code == 0, f"{fault}, without a fault at call {number}: {aws.calls}"
            cleared(aws, "no fault")
            return found
        counted += 1
        points = found[fault]
        points.calls.append(aws.hit)
        points.codes[code] += 1
        where = f"{fault} {aws.hit} (call {number})"
        if fault == "throttled":
            assert code == 0, where
        elif fault in ("before", "lost"):  # the network is down, so the command cannot finish
            assert code != 0 or aws.hit in without, where
        elif fault.startswith("killed"):
            assert code == -9, where
        points.left += cleared(aws, where)


def cleared(aws: AwsServer, where: str) -> int:
    """Runs `down` in a healthy account: it leaves nothing, and the ledger has no open entries and lost none.

    Returns:
        The number of resources that AWS still lists.
    """
    aws.point = aws.client = None
    aws.script.looks = None  # running jobs continue until they are stopped
    ledgers = [_ledger(path) for path in Path(os.environ["NEURON_SUM_STATE"]).glob("aws/*.jsonl")]
    noted = {(entry.kind, entry.name) for ledger in ledgers for entry in ledger.open()}
    for left in aws.everything():
        kind, name = left.split()[:2]
        assert (kind, name) in noted, f"{where}: the ledger lost {left}"
    down = neuron_sum("aws", "down", "--all", "--every", "0.01")
    assert down.exit_code == 0, f"{where}: {down.stderr}"
    assert aws.everything() == [], where
    assert neuron_sum("aws", "down", "--check").exit_code == 0, where
    gone = neuron_sum("aws", "down", "--all", "--artifacts", "--every", "0.01")
    assert gone.exit_code == 0, f"{where}: {gone.stderr}"
    assert aws.kept() == [], where
    for ledger in ledgers:
        assert ledger.open() == [], where
    return len([*aws.everything(), *aws.kept()])


def _ledger(path: Path) -> Ledger:
    account, _, region = path.stem.partition("-")
    return Ledger(AwsContext(account, region), path.parent.parent)


def _killed(aws: AwsServer, words: Sequence[str]) -> int:
    """Runs the command in a separate process, which the server kills at its point."""
    if aws.forks is None:
        aws.forks = Forks()

    def started(process: int) -> None:
        aws.client = process

    return aws.forks.run(words, started)
