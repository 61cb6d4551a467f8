"""The NeuronCores that processes claim, and the workers of a server on them."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from neuron_sum.artifact import Compilation, Manifest
from neuron_sum.errors import ArtifactError, NeuronSumError, PlatformError
from neuron_sum.recipes.loading import load_recipe
from neuron_sum.recipes.schema import ServeConfig
from neuron_sum.runtimes import device
from serving import dockerfile, properties


class Claimer:
    """A process that claims cores and holds them until it is killed."""

    def __init__(self, needed: int) -> None:
        context = multiprocessing.get_context("fork")
        self._said, says = context.Pipe(duplex=False)
        self._process = context.Process(target=self._claim, args=(needed, says), daemon=True)
        self._process.start()
        assert self._said.poll(30)
        self.cores: str = self._said.recv()

    @staticmethod
    def _claim(needed: int, says: Connection) -> None:
        try:
            device.take_cores(needed)
            says.send(os.environ[device.VISIBLE])
        except NeuronSumError as error:
            says.send(error.message)
        multiprocessing.Event().wait()  # until it is killed

    def kill(self) -> None:
        """SIGKILL, as the kernel sends when memory is exhausted."""
        self._process.kill()
        self._process.join()


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one chip, on which nothing is claimed."""
    monkeypatch.setattr(device, "_claimed", None)
    monkeypatch.setattr(device, "neuron_devices", lambda: 1)
    monkeypatch.setattr(device, "WAIT_S", 0.2)
    monkeypatch.setenv(device.VISIBLE, "")  # as if unset; monkeypatch removes the value that a test sets
    monkeypatch.delenv(device.COUNT, raising=False)


@pytest.fixture
def claim() -> Iterator[Callable[[int], Claimer]]:
    with ExitStack() as stack:

        def start(needed: int = 1) -> Claimer:
            claimer = Claimer(needed)
            stack.callback(claimer.kill)
            return claimer

        yield start


def test_each_process_claims_a_free_core_and_its_successor_reuses_it(claim: Callable[..., Claimer]) -> None:
    first, second = claim(), claim()
    assert (first.cores, second.cores) == ("0", "1")
    assert (
        claim().cores == "all NeuronCores that this process may use are in use by other processes of neuron-sum: 0, 1"
    )
    for victim, core in ((second, "1"), (first, "0")):
        victim.kill()
        assert claim().cores == core


def test_a_process_waits_for_a_core_whose_process_is_being_removed(
    claim: Callable[..., Claimer], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = claim(), claim()
    monkeypatch.setattr(device, "WAIT_S", 30)
    monkeypatch.setattr(device.time, "sleep", lambda seconds: first.kill())
    device.take_cores(1)
    assert os.environ[device.VISIBLE] == "0"


def test_cores_are_claimed_among_the_visible_ones(
    claim: Callable[..., Claimer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "neuron_devices", lambda: 4)
    monkeypatch.setenv(device.VISIBLE, "3,5-6")
    assert [claim().cores for _ in range(3)] == ["3", "5", "6"]
    assert "in use by other processes of neuron-sum: 3, 5, 6" in claim().cores
    monkeypatch.setenv(device.VISIBLE, "2-6")
    assert "in use by other processes of neuron-sum: 2-3, 4-5" in claim(2).cores, "only half of each is free"
    assert [claim().cores for _ in range(2)] == ["2", "4"]


def test_a_process_keeps_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    device.take_cores(1)
    device.take_cores(1)
    assert os.environ[device.VISIBLE] == "0"
    with pytest.raises(ArtifactError, match="compiled for 2 NeuronCores, but this process has claimed 0 for another"):
        device.take_cores(2)
    monkeypatch.setattr(device, "_claimed", None)
    monkeypatch.setenv(device.VISIBLE, "0-1")
    monkeypatch.setenv(device.LOCKS_VARIABLE, str(Path(os.environ[device.LOCKS_VARIABLE], "none")))
    with pytest.raises(PlatformError, match=r"core-0\.lock cannot be locked: No such file"):
        device.take_cores(2)


@pytest.mark.parametrize(
    ("visible", "count", "chips", "needed", "workers"),
    [
        ("", "", 1, 1, 2),
        ("", "", 1, 2, 1),
        ("", "", 16, 1, 32),
        ("", "", 0, 1, 2),  # no device is visible: at least one chip
        ("", "0", 1, 1, 2),  # 0 means all
        ("", "1", 1, 1, 1),
        ("", "3", 2, 2, 1),
        ("", "9", 2, 1, 4),
        ("0", "2", 1, 1, 1),  # the runtime ignores the number
        ("1", "", 1, 1, 1),
        ("0,1", "", 1, 2, 1),
        ("1,0,0-1", "", 1, 1, 2),
        (" 1 , 3-4 ", "", 4, 1, 3),
        ("1-4", "", 4, 2, 2),
        ("0-2", "", 4, 2, 1),
        ("0,2", "", 4, 2, 1),  # the only worker reports it
    ],
)
def test_a_server_has_one_worker_per_group_of_cores(
    monkeypatch: pytest.MonkeyPatch, visible: str, count: str, chips: int, needed: int, workers: int
) -> None:
    monkeypatch.setattr(device, "neuron_devices", lambda: chips)
    monkeypatch.setenv(device.VISIBLE, visible)
    monkeypatch.setenv(device.COUNT, count)
    assert device.workers(needed, os.environ) == workers


@pytest.mark.parametrize(
    ("visible", "count", "needed", "message"),
    [
        ("both", "", 1, "NEURON_RT_VISIBLE_CORES=both: this machine has 4 NeuronCores"),
        ("4", "", 1, "VISIBLE_CORES=4: this machine has 4"),
        ("2-1", "", 1, "VISIBLE_CORES=2-1"),
        ("-1", "", 1, "VISIBLE_CORES=-1"),
        ("0,", "", 1, "VISIBLE_CORES=0,"),
        ("0-99999999999", "", 1, "VISIBLE_CORES=0-9"),
        ("", "two", 1, "NEURON_RT_NUM_CORES=two: not a number of NeuronCores"),
        ("", "-1", 1, "NUM_CORES=-1"),
        ("1", "", 2, "compiled for 2 NeuronCores, but this process has 1 NeuronCores"),
        ("", "1", 2, "this process has 1 NeuronCores"),
        ("0,2", "", 2, "compiled for 2 NeuronCores, but this process has no consecutive ones"),
    ],
)
def test_invalid_or_too_few_cores_are_rejected(
    monkeypatch: pytest.MonkeyPatch, visible: str, count: str, needed: int, message: str
) -> None:
    monkeypatch.setattr(device, "neuron_devices", lambda: 2)
    monkeypatch.setenv(device.VISIBLE, visible)
    monkeypatch.setenv(device.COUNT, count)
    with pytest.raises((PlatformError, ArtifactError), match=message):
        device.take_cores(needed)


def manifest(target: str, cores: int = 1) -> Manifest:
    compilation = None if target == "cpu" else Compilation.model_construct(tensor_parallel_size=cores)
    return Manifest.model_construct(target=target, compilation=compilation, adapters=None)


@pytest.mark.parametrize(
    ("target", "workers", "expected"),
    [("cpu", None, "1"), ("cpu", 3, "3"), ("inf2", None, None), ("trn1", 1, "1"), ("inf2", 2, "2")],
)
def test_the_settings_contain_the_number_of_workers_unless_the_machine_decides(
    tmp_path: Path, target: str, workers: int | None, expected: str | None
) -> None:
    artifact: Any = SimpleNamespace(manifest=manifest(target), recipe=load_recipe("tiny"))
    limits, file = ServeConfig(workers=workers), tmp_path / properties.FILE
    file.write_text(properties.render(artifact, limits))
    read = properties.read(file)
    assert [read.get(name) for name in ("minWorkers", "maxWorkers", "retry_threshold")] == [expected] * 3
    assert properties.check(file, artifact, tmp_path) == properties.read_limits(read) == limits
    written = file.read_text()
    for line, fault in (
        ("gpu.maxWorkers=9", "is not a setting"),
        ("maxWorkers=9", "maxWorkers occurs twice" if expected else "maxWorkers is '9', must be 'missing'"),
    ):
        file.write_text(f"{written}{line}\n")
        with pytest.raises(ArtifactError, match=fault):
            properties.check(file, artifact, tmp_path)


def test_models_share_the_cores_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "neuron_devices", lambda: 2)

    def workers(*models: Manifest) -> set[str]:
        return set(properties.worker_environment(models, {device.VISIBLE: "0-3"}).values())

    assert workers(manifest("cpu")) == set()
    assert workers(manifest("inf2")) == workers(manifest("inf2"), manifest("cpu")) == {"4"}
    assert workers(manifest("inf2", 2)) == workers(manifest("inf2"), manifest("inf2")) == {"2"}
    assert workers(manifest("inf2", 2), manifest("inf2")) == {"1"}
    assert workers(*[manifest("inf2")] * 5) == {"1"}, "the fifth reports that no core is free"


def test_the_image_for_inf2_asks_for_the_number_of_workers() -> None:
    command = f"python -m serving.properties {dockerfile.MODEL}"
    assert command in dockerfile.render_entrypoint("inf2")
    assert command not in dockerfile.render_entrypoint("cpu")
