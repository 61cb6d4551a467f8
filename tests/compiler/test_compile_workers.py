"""The processes that compile graphs: their graphs, the files of a failed one, and that none remains."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from compile import workers
from compile.exporters.own import make_plan
from compile.source import open_source
from compile.workers import Job, compile_all
from neuron_sum.artifact import GraphFile
from neuron_sum.errors import CompileError


@dataclass(frozen=True)
class Told:
    """A target whose graphs contain the id of the process that compiled them; the graph named by `fails` fails."""

    shares_process: bool
    fails: str = ""
    how: str = ""
    suffix: str = ".pt2"

    def memory_advice(self) -> str:
        return "less"

    def compile_graph(self, model: Any, graph: GraphFile, weights: Any, path: Path) -> None:
        print(f"at work on {graph.file}")
        if graph.file == self.fails:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError(f"no {graph.file}")
        path.write_text(str(os.getpid()))


@pytest.fixture
def jobs(micro_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Three graphs to compile for a target, in the cache folder."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    plan = make_plan(open_source(micro_run, None, ["compile.batch_sizes=[1,3]", "compile.source_lens=[192]"]))

    def made(target: Any) -> list[Job]:
        return [
            Job(plan.config, plan.options, graph, target, tmp_path / Path(graph.file).name, None)
            for graph in plan.graphs[:3]
        ]

    return made


def makers(done: list[Job]) -> set[int]:
    return {int(job.path.read_text()) for job in done}


@pytest.mark.parametrize(("shares", "processes", "made_by"), [(True, 1, 1), (True, 2, 2), (False, 1, 3)])
def test_a_process_compiles_several_graphs_if_the_target_allows_it(
    jobs: Any, shares: bool, processes: int, made_by: int
) -> None:
    done = list(compile_all(jobs(Told(shares)), processes))
    assert len(done) == 3 and len(makers(done)) == made_by
    assert not [process for process in makers(done) if psutil.pid_exists(process)]


@pytest.mark.parametrize("how", ["refused", "killed"])
def test_a_second_failing_graph_of_a_process_has_a_separate_log(jobs: Any, how: str) -> None:
    first, second, third = jobs(Told(True))
    told = Told(True, second.graph.file, how)
    done = []
    with pytest.raises(CompileError, match=f"{second.graph.file} did not compile") as error:
        for job in compile_all([Job(**{**vars(each), "target": told}) for each in (first, second, third)], 1):
            done.append(job)
    assert [job.graph for job in done] == [first.graph]
    log = second.path.with_suffix(".log").read_text()
    assert f"at work on {first.graph.file}" not in log
    if how == "refused":
        assert f"at work on {second.graph.file}\n" in log and f"RuntimeError: no {second.graph.file}" in log
    else:
        assert "memory ran out" in str(error.value)
    assert not third.path.exists() and not [process for process in makers(done) if psutil.pid_exists(process)]


def test_an_abandoned_iterator_leaves_no_process(jobs: Any) -> None:
    going = compile_all(jobs(Told(True)), 2)
    next(going)
    going.close()
    left = psutil.Process().children(recursive=True)
    assert not [process for process in left if "spawn_main" in " ".join(process.cmdline())]


def test_a_second_stop_while_processes_are_ended_leaves_none(jobs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    end = workers._Worker.end

    def interrupted(worker: workers._Worker, seconds: float) -> None:
        end(worker, seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(workers._Worker, "end", interrupted)
    going = compile_all(jobs(Told(True)), 2)
    next(going)
    with pytest.raises(KeyboardInterrupt):
        going.close()
    left = psutil.Process().children(recursive=True)
    assert not [process for process in left if "spawn_main" in " ".join(process.cmdline())]


TARGET = """
import multiprocessing, time
from dataclasses import dataclass
from tqdm import tqdm

@dataclass(frozen=True)
class Target:
    shares_process: bool = True
    suffix: str = ".pt2"

    def compile_graph(self, model, graph, weights, path):
        bar = tqdm(total=1)  # torch shows one; its lock has a semaphore
        if graph.file == "2":
            time.sleep(100)
        self.__dict__["lock"] = multiprocessing.RLock()
        path.write_text("")
"""
COMPILING = """
import sys
from pathlib import Path
from target import Target
from compile.exporters.own import make_plan
from compile.source import open_source
from compile.workers import Job, compile_all

if __name__ == "__main__":
    plan = make_plan(open_source(Path(sys.argv[1]), None, ["compile.batch_sizes=[1]", "compile.source_lens=[192]"]))
    graphs = [plan.graphs[0].model_copy(update={"file": str(number)}) for number in (1, 2)]
    jobs = [Job(plan.config, plan.options, graph, Target(), Path.cwd() / graph.file, None) for graph in graphs]
    interrupted = compile_all(jobs, 2)
    print(next(interrupted).graph.file)  # its process is idle, the other one is at work
    interrupted.close()
"""


def test_neither_idle_nor_killed_processes_leave_semaphores(micro_run: Path, tmp_path: Path) -> None:
    (tmp_path / "target.py").write_text(TARGET)
    (tmp_path / "compiling.py").write_text(COMPILING)
    result = subprocess.run(
        [sys.executable, "compiling.py", str(micro_run)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "1\n", "")
