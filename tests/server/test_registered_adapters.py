"""The adapters that the workers of a model share."""

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_adapters import write_adapter

from neuron_sum import files
from neuron_sum.artifact import AdapterSpec
from neuron_sum.errors import ModelError, ResourceError
from neuron_sum.runtimes.slots import AdapterSlots
from serving.adapters import RECORD, Adapters
from serving.schema import ServiceError

Start = Callable[[], Adapters]
MODULE, RANK = "encoder.block.0.layer.0.SelfAttention.q", 4


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An adapter of one module."""
    halves = {"A": torch.ones(RANK, 8), "B": torch.ones(6, RANK)}
    tensors = {f"base_model.model.{MODULE}.lora_{half}.weight": tensor for half, tensor in halves.items()}
    return write_adapter(tmp_path / "adapter", None, tensors, r=RANK, target_modules=["q"])


@pytest.fixture
def start(source: Path, tmp_path: Path) -> Start:
    """Starts another worker of a model that has room for one adapter besides its own."""
    spec = AdapterSpec(rank=RANK, slots=3, target_modules=("q",))

    def started() -> Adapters:
        stacks = {f"{MODULE}_a": torch.zeros(3, RANK, 8), f"{MODULE}_b": torch.zeros(3, 6, RANK)}
        slots = AdapterSlots(spec, stacks, {MODULE: MODULE})
        slots.load("default", tmp_path / "default")
        adapters = Adapters(slots, ["default"], tmp_path / "registered")
        adapters.load()
        return adapters

    shutil.copytree(source, tmp_path / "default")
    return started


def register(worker: Adapters, name: str, folder: Path | str, *, known: bool = False) -> None:
    asyncio.run(worker.register(name, str(folder), known=known))


def names(worker: Adapters) -> list[str]:
    """The adapters as the next request finds them."""
    asyncio.run(worker.follow())
    return worker.names


def content(worker: Adapters, name: str) -> list[Any]:
    """The values in the slot of an adapter."""
    asyncio.run(worker.follow())
    slots = worker._slots
    assert slots is not None
    with slots.lease([name]) as (slot,):
        return [stack[slot].tolist() for stack in slots.stacks.values()]


def doubled(folder: Path) -> None:
    """Changes the weights of an adapter."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "lora_alpha": 2 * config["lora_alpha"]}))


def test_every_worker_has_each_change_that_was_answered(start: Start, source: Path) -> None:
    one, other = start(), start()
    register(one, "late", source)
    assert names(one) == names(other) == names(start()) == ["default", "late"]
    assert asyncio.run(other.list()) == {"late": str(source)}
    first = content(other, "late")
    doubled(source)
    assert content(start(), "late") == first, "a worker that starts later loads the same bytes"
    register(other, "late", "", known=True)
    assert content(one, "late") == content(other, "late") == content(start(), "late") != first
    shutil.rmtree(source)
    assert names(start()) == ["default", "late"]
    asyncio.run(one.unregister("late"))
    assert names(one) == names(other) == names(start()) == ["default"]
    assert [path.name for path in one._folder.iterdir() if path.is_dir()] == [], "no copy is left"


def test_every_worker_refuses_the_same_changes(start: Start, source: Path, tmp_path: Path) -> None:
    one, other = start(), start()
    register(one, "late", source)
    refusals = [
        ("late", source, False, 409),
        ("default", source, False, 409),
        ("default", source, True, 409),
        ("x", source, True, 404),
        ("base", source, False, 400),
        ("more", "", False, 400),
        ("third", source, False, 422),
        ("late", tmp_path / "none", True, 422),
    ]
    for worker in (one, other):
        for name, folder, known, code in refusals:
            with pytest.raises(ServiceError) as refused:
                register(worker, name, folder, known=known)
            assert refused.value.code == code, (name, refused.value.message)
        for name, code in (("default", 409), ("x", 404)):
            with pytest.raises(ServiceError) as refused:
                asyncio.run(worker.unregister(name))
            assert refused.value.code == code
        assert names(worker) == ["default", "late"]
    with pytest.raises(ServiceError, match="all 2 adapter slots are taken: default, late"):
        register(other, "third", source)
    assert len([path for path in one._folder.iterdir() if path.is_dir()]) == 1


def test_of_two_concurrent_registrations_one_is_refused(start: Start, source: Path) -> None:
    workers, codes = [start(), start()], list[int]()

    def race(worker: Adapters) -> None:
        try:
            register(worker, "late", source)
            codes.append(200)
        except ServiceError as error:
            codes.append(error.code)

    threads = [threading.Thread(target=race, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(codes) == [200, 409]
    assert [names(worker) for worker in workers] == [["default", "late"]] * 2


@pytest.mark.parametrize("known", [False, True])
def test_a_change_that_cannot_be_stored_is_taken_back(
    start: Start, source: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    one, other = start(), start()
    if known:
        register(one, "late", source)
    before, expected = names(one), content(one, "late") if known else None
    doubled(source)

    def full(path: Path, value: Any) -> None:
        raise ResourceError(f"{path} cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", full)
        with pytest.raises(ServiceError, match=r"the adapters cannot be stored: .*No space left") as refused:
            register(one, "late", source, known=known)
    assert refused.value.code == 503
    assert names(one) == names(other) == names(start()) == before
    if known:
        assert content(one, "late") == content(other, "late") == expected
        return
    register(other, "late", source)
    assert names(one) == ["default", "late"]


def test_a_worker_that_dies_in_a_change_has_changed_nothing(
    start: Start, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = start(), start()

    class Killed(BaseException):
        pass

    def die(path: Path, value: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", die)
        patch.setattr(Adapters, "_remove_old_copies", lambda self: None)
        with pytest.raises(Killed):
            register(one, "late", source)
    assert names(other) == names(start()) == ["default"]
    register(other, "late", source)
    assert len([path for path in other._folder.iterdir() if path.is_dir()]) == 1, "the copy of the dead one is removed"


@pytest.mark.parametrize("kind", [ModelError, ResourceError, MemoryError])
def test_a_worker_that_cannot_load_an_adapter_refuses_its_requests(
    start: Start, source: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    """It does not answer with the old adapter, or with none."""
    one, other = start(), start()
    fault = kind("all slots available to it are in use")
    register(one, "late", source)
    assert names(other) == ["default", "late"]
    doubled(source)
    register(one, "late", source, known=True)

    def busy(self: AdapterSlots, name: str, folder: Path, timeout_s: float) -> None:
        assert timeout_s < 2, "requests for other adapters wait, too"
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(AdapterSlots, "load", busy)
        assert names(other) == ["default"]
        for _ in range(2):
            with pytest.raises(ServiceError, match=r"adapter 'late' cannot be loaded: .* are in use") as refused:
                other.check("late")
            assert (refused.value.code, refused.value.retry_after_s) == (503, 1)
            asyncio.run(other.follow())
        other.check("default")
    with pytest.raises(ServiceError):  # the next request tries again
        other.check("late")
    assert names(other) == ["default", "late"]
    other.check("late")
    assert content(other, "late") == content(one, "late")


def test_a_request_waits_for_a_change_that_another_request_is_loading(
    start: Start, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = start(), start()
    register(one, "late", source)
    began, go, load = threading.Event(), threading.Event(), AdapterSlots.load

    def slow(self: AdapterSlots, name: str, folder: Path, timeout_s: float) -> None:
        began.set()
        assert go.wait(30)
        load(self, name, folder, timeout_s)

    monkeypatch.setattr(AdapterSlots, "load", slow)
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(names(other))) for _ in range(2)]
    threads[0].start()
    assert began.wait(30)
    threads[1].start()
    threads[1].join(0.2)
    assert found == []
    go.set()
    for thread in threads:
        thread.join(30)
    assert found == [["default", "late"]] * 2


def test_an_update_while_batches_use_all_slots_can_be_tried_again(
    start: Start, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = start()
    register(worker, "late", source)
    before = content(worker, "late")
    doubled(source)
    monkeypatch.setattr("serving.adapters.CHANGE_TIMEOUT_S", 0.1)
    assert worker._slots is not None
    with worker._slots.lease(["late"]), pytest.raises(ServiceError, match="are in use") as refused:
        register(worker, "late", source, known=True)
    assert (refused.value.code, refused.value.retry_after_s) == (503, 1)
    assert content(worker, "late") == before
    register(worker, "late", source, known=True)
    assert content(worker, "late") != before


def test_a_damaged_record_is_reported(start: Start, source: Path) -> None:
    one, other = start(), start()
    register(one, "late", source)
    (one._folder / RECORD).write_text("{")
    with pytest.raises(ServiceError, match=r"the adapters cannot be stored: .*cannot be read") as refused:
        register(other, "more", source)
    assert refused.value.code == 503
