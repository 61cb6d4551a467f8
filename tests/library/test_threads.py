"""The OpenMP variables that a command chooses from affinity, quota and the work of other processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuron_sum.platform import threads

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(threads, "SHORTEST_S", 0.0)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def machine(root: Path, others: float) -> threads.Usage:
    """A machine whose kernel counts this much work of others per second, on 8 cores, and a measurement of 1 s ago."""
    busy = round((others + 10) * TICKS)
    cores = [f"cpu{core} {busy if core == 1 else 0} 0 0 77 5 0 0 0 9 0" for core in range(4)]
    foreign = [f"cpu{core} 999999 0 0 0 0 0 0 0 0 0" for core in range(4, 8)]
    write(root / "proc/stat", "\n".join(["cpu 1 1 1 1", *cores, *foreign, "intr 5"]))
    now = threads.usage(root)
    assert now is not None
    return threads.Usage(now.at - 1, 10.0, now.own)


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        (0.0, {"OMP_NUM_THREADS": "4"}),
        (0.4, {"OMP_NUM_THREADS": "4"}),
        (1.0, {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "PASSIVE"}),
        (3.9, {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}),
        (6.0, {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_the_free_cores_decide(tmp_path: Path, others: float, expected: dict[str, str]) -> None:
    environment: dict[str, str] = {}
    threads.choose(environment, machine(tmp_path, others), root=tmp_path)
    assert environment.pop("NEURON_SUM_CHOSE").split() == list(expected)
    assert environment == expected


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OMP_WAIT_POLICY"])
def test_variables_of_the_user_stay(tmp_path: Path, name: str) -> None:
    environment = {name: "7"}
    threads.choose(environment, machine(tmp_path, 4), root=tmp_path)
    assert environment[name] == "7"
    assert name not in environment["NEURON_SUM_CHOSE"]
    assert {"OMP_NUM_THREADS", "OMP_WAIT_POLICY"} < environment.keys()


def test_a_spin_count_of_the_user_is_not_overridden_by_a_policy(tmp_path: Path) -> None:
    environment = {"GOMP_SPINCOUNT": "100"}
    threads.choose(environment, machine(tmp_path, 4), root=tmp_path)
    assert "OMP_WAIT_POLICY" not in environment


def test_a_command_started_by_another_chooses_again(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    threads.choose(environment, machine(tmp_path, 4), root=tmp_path)
    threads.choose(environment, machine(tmp_path, 0), root=tmp_path)
    assert environment == {"OMP_NUM_THREADS": "4", "NEURON_SUM_CHOSE": "OMP_NUM_THREADS"}


def test_a_server_keeps_its_threads_when_the_machine_is_busy_at_its_start(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    threads.choose(environment, machine(tmp_path, 4), serves=True, root=tmp_path)
    assert (environment["OMP_NUM_THREADS"], environment["OMP_WAIT_POLICY"]) == ("4", "PASSIVE")


def test_processes_divide_the_chosen_threads(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    threads.choose(environment, machine(tmp_path, 0), root=tmp_path)
    threads.divide(environment, 2)
    assert environment == {"OMP_NUM_THREADS": "2", "NEURON_SUM_CHOSE": "OMP_NUM_THREADS"}
    environment["TORCHELASTIC_RUN_ID"] = "1"
    threads.choose(environment, machine(tmp_path, 4), root=tmp_path)
    assert environment["OMP_NUM_THREADS"] == "2"
    given = {"OMP_NUM_THREADS": "2"}
    threads.divide(given, 2)
    assert given == {"OMP_NUM_THREADS": "2"}, "a number that was set is for each process"
    few = {"OMP_NUM_THREADS": "1", "NEURON_SUM_CHOSE": "OMP_NUM_THREADS"}
    threads.divide(few, 4)
    assert few["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("group", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "350000 100000\n"}, 3),
        ("0::/pod/box\n", {"pod/cpu.max": "200000 100000\n", "pod/box/cpu.max": "max 100000\n"}, 2),
        ("0::/not/visible\n", {"cpu.max": "200000 100000\n"}, 2),
        ("3:cpu,cpuacct:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ("1:cpu:/docker/id\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        ("1:cpuset:/\n", {}, 4),
        ("damaged", {"cpu.max": ""}, 4),
    ],
)
def test_a_quota_limits_the_cores(tmp_path: Path, group: str, files: dict[str, str], expected: int) -> None:
    write(tmp_path / "proc/self/cgroup", group)
    for name, text in files.items():
        write(tmp_path / "sys/fs/cgroup" / name, text)
    assert threads.cores(tmp_path) == expected
    environment: dict[str, str] = {}
    threads.choose(environment, machine(tmp_path, 0), root=tmp_path)
    assert environment["OMP_NUM_THREADS"] == str(expected)


def test_two_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for core, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        write(tmp_path / f"sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list", siblings)
    environment: dict[str, str] = {}
    threads.choose(environment, machine(tmp_path, 1), root=tmp_path)
    assert environment["OMP_NUM_THREADS"] == "2"


@pytest.mark.parametrize("stat", [None, "cpu0 1 2 3\ncpu1 many", "cpu0 \x00"])
def test_an_unreadable_proc_stat_leaves_affinity_and_quota(tmp_path: Path, stat: str | None) -> None:
    write(tmp_path / "proc/self/cgroup", "0::/\n")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "200000 100000\n")
    before = machine(tmp_path, 3)
    (tmp_path / "proc/stat").unlink()
    if stat is not None:
        write(tmp_path / "proc/stat", stat)
    assert threads.usage(tmp_path) is None
    for measured in (None, before):
        environment: dict[str, str] = {}
        threads.choose(environment, measured, root=tmp_path)
        assert environment == {"OMP_NUM_THREADS": "2", threads.CHOSEN: "OMP_NUM_THREADS"}


def test_nothing_is_chosen_where_the_affinity_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    environment: dict[str, str] = {}
    threads.choose(environment, None)
    assert environment == {}


@pytest.mark.parametrize(
    ("environment", "count", "expected"),
    [
        ({"OMP_NUM_THREADS": "4", threads.CHOSEN: "OMP_NUM_THREADS"}, 4, "threads: 4 of 4 cores"),
        (
            {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", threads.CHOSEN: "OMP_NUM_THREADS OMP_WAIT_POLICY"},
            1,
            "threads: 1 of 4 cores (other processes use the rest, waiting threads sleep)",
        ),
        (
            {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"},
            2,
            "threads: 2 of 4 cores (OMP_NUM_THREADS=2, OMP_WAIT_POLICY=ACTIVE)",
        ),
    ],
)
def test_the_choice_is_described(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], count: int, expected: str
) -> None:
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", threads.CHOSEN):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert threads.describe(count) == expected


def test_the_console_script_chooses_before_a_command_loads_torch(tmp_path: Path) -> None:
    code = """
import os, sys
from neuron_sum import cli
def application():
    assert "torch" not in sys.modules
    print(os.environ["OMP_NUM_THREADS"], os.environ["NEURON_SUM_CHOSE"])
cli.build = lambda: application
cli.main()
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    count, *names = result.stdout.split()
    assert int(count) >= 1
    assert names[0] == "OMP_NUM_THREADS"
