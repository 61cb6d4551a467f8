"""Greedy generation with FLAN-T5's dimensions on this machine's CPU: neuron-sum compared with other T5 runtimes.

    python benchmarks/generation.py [--models small,base] [--batches 1,8] [--threads 1,2] [--rounds 5]
                                    [--systems ours-int8,ctranslate2-int8] [--cold 3] [--work FOLDER]

Input: 256 random tokens; output: exactly 64 new tokens; random weights from a seed. Each system is a separate process
(peers.py) that runs for all rounds; within a round the systems take turns. CPU is the process's time over all threads.
Figures are medians over the rounds; ratios are computed within a round, for the CPU time and the wall time.

With as many threads as CPUs, the machine must be otherwise idle: next to other work the threads wait for each other and
spin (eager transformers took ten times as long; with OMP_WAIT_POLICY=passive it did not). The title of each table has
the load of other processes, and OMP_* variables are passed to the systems.

The peers' environment is created on first use in .venv-peers (constraints/peers.txt on top of the environment of this
program, Python 3.11). Checkpoints, converted models and logs are in the work folder (8 GB for both models).
"""

import argparse
import itertools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil
from peers import NEW_TOKENS, SOURCE_TOKENS, SYSTEMS, Job, once
from rich.table import Table

from neuron_sum import console

if TYPE_CHECKING:
    from neuron_sum.artifact import Artifact

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints" / "peers.txt"
ENVIRONMENT = ROOT / ".venv-peers"
REFERENCE = "transformers-fp32"

MODELS: dict[str, dict[str, int]] = {
    "small": {"d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "d_kv": 64},
    "base": {"d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12, "d_kv": 64},
}
VOCABULARY = 32128
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
END_OF_SEQUENCE = 1
# CPU features that make int8 and bf16 fast; without them they are slow.
CPU_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass(frozen=True)
class Run:
    """One answer of a system: the first example's new tokens, and the CPU and wall time in seconds."""

    tokens: list[int]
    cpu_s: float
    wall_s: float


def main() -> None:
    """Prepare and run the comparison, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=_names(MODELS), default=list(MODELS), metavar="NAME,…", help=", ".join(MODELS))
    parser.add_argument("--batches", type=_numbers, default=[1, 8], metavar="N,…", help="batch sizes")
    parser.add_argument("--threads", type=_numbers, default=[1, 2], metavar="N,…", help="numbers of threads")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds")
    parser.add_argument(
        "--systems", type=_names(SYSTEMS), default=list(SYSTEMS), metavar="NAME,…", help=", ".join(SYSTEMS)
    )
    parser.add_argument("--cold", type=int, default=3, help="new processes per system for the cold start; 0 skips it")
    parser.add_argument(
        "--work", type=Path, default=ROOT / "build" / "generation", help="folder for checkpoints, models and logs"
    )
    options = parser.parse_args()
    names = [REFERENCE, *(name for name in options.systems if name != REFERENCE)]
    if any(SYSTEMS[name].peer for name in names):
        make_environment()
    work: Path = options.work.resolve()

    # All artifacts are built first, so that a failing conversion or compilation ends the program before it measures.
    versions: dict[str, str] = {}
    settings = list(itertools.product(options.models, options.batches, options.threads))
    for model in options.models:
        once(work / model / "checkpoint", partial(make_checkpoint, MODELS[model]))
    builds = {
        job.artifact: (name, job) for setting in settings for name, job in jobs_for(work, names, *setting).items()
    }
    for artifact, (name, job) in builds.items():
        console.note(f"{'loading' if artifact.exists() else 'building'} {artifact.relative_to(work)}")
        with Worker(name, job) as worker:
            versions |= worker.versions

    console.emit({}, _machine(), ", ".join(f"{name} {version}" for name, version in sorted(versions.items())))
    for model, batch, threads in settings:
        jobs = jobs_for(work, names, model, batch, threads)
        runs, elsewhere = measure(jobs, options.rounds)
        title = f"\nFLAN-T5-{model}, batch {batch}, {threads} thread(s), {options.rounds} rounds"
        console.emit({}, speed_table(f"{title}, {elsewhere:.1f} CPUs busy with other processes", jobs, runs))
    for model in options.models if options.cold else ():
        batch, threads = options.batches[0], options.threads[0]
        jobs = jobs_for(work, names, model, batch, threads)
        title = f"\nFLAN-T5-{model}, cold start, batch {batch}, {threads} thread(s), {options.cold} processes each"
        console.emit({}, cold_table(title, cold_starts(jobs, options.cold)))


def jobs_for(work: Path, names: list[str], model: str, batch: int, threads: int) -> dict[str, Job]:
    """The job of each system for a model, a batch and a number of threads."""
    fixed = f"-batch{batch}"
    artifacts = {name: work / model / (name + (fixed if SYSTEMS[name].fixed else "")) for name in names}
    return {name: Job(work / model / "checkpoint", artifacts[name], batch, threads) for name in names}


def make_environment() -> None:
    """Create the peers' environment if it does not exist or constraints/peers.txt has changed.

    It extends the environment of this program, so that all systems have the same torch and transformers.
    """
    requirements = CONSTRAINTS.read_text(encoding="utf-8")
    installed = ENVIRONMENT / "installed.txt"
    if installed.exists() and installed.read_text(encoding="utf-8") == requirements:
        return
    if sys.version_info < (3, 11):
        raise SystemExit("the peers require Python 3.11; choose other systems with --systems")
    console.note(f"creating {ENVIRONMENT.name} from constraints/{CONSTRAINTS.name}")
    venv.create(ENVIRONMENT, with_pip=True, clear=True)
    (ENVIRONMENT / ".gitignore").write_text("*\n", encoding="utf-8")
    variables = {"base": str(ENVIRONMENT), "platbase": str(ENVIRONMENT)}
    below = Path(sysconfig.get_path("purelib", scheme="venv", vars=variables)) / "below.pth"
    below.write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n", encoding="utf-8")
    pip = [_python(peer=True), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--ignore-installed", "-r", str(CONSTRAINTS)], check=True)
    installed.write_text(requirements, encoding="utf-8")


def make_checkpoint(dimensions: dict[str, int], folder: Path) -> None:
    """Save random weights from a seed, and a tokenizer with a made-up vocabulary, which CTranslate2 requires."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=END_OF_SEQUENCE,
        **dimensions,
    )
    T5ForConditionalGeneration(config).eval().save_pretrained(folder)
    words = [*SPECIAL_TOKENS, *(f"word{index}" for index in range(len(SPECIAL_TOKENS), VOCABULARY))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def small_artifact(
    work: Path, batches: Sequence[int], source_tokens: int, new_tokens: int, changes: Sequence[str] = ()
) -> "Artifact":
    """An artifact with FLAN-T5-small's dimensions and random weights, compiled once into the work folder.

    Args:
        work: The work folder.
        batches: The batch sizes.
        source_tokens: The source length.
        new_tokens: The target length.
        changes: More changes to the recipe.
    """
    from compile.exporters.own import build, make_plan
    from compile.source import open_source
    from neuron_sum.artifact import open_artifact

    once(work / "checkpoint", partial(make_checkpoint, MODELS["small"]))
    shape = [
        f"compile.batch_sizes={list(batches)}",
        f"compile.source_lens=[{source_tokens}]",
        f"compile.target_len={new_tokens}",
        f"generate.max_new_tokens={new_tokens}",
        f"data.max_source_length={source_tokens}",
    ]
    folder = work / "-".join(["artifact", *re.findall(r"\w+", " ".join([*shape, *changes]))])
    if not folder.exists():
        source = open_source(work / "checkpoint", "tiny", [*shape, *changes])
        build(source, make_plan(source), folder, overwrite=False, jobs=None)
    return open_artifact(folder)


def inputs(batch: int) -> list[list[int]]:
    """Random token ids (batch, SOURCE_TOKENS) with an end token per row; the first row is the same in every batch."""
    numbers = random.Random(7)
    words = range(len(SPECIAL_TOKENS), VOCABULARY)
    return [[*numbers.choices(words, k=SOURCE_TOKENS - 1), END_OF_SEQUENCE] for _ in range(batch)]


class Worker:
    """A system in a separate process, ready to generate (see peers.py).

    Args:
        name: The system's name.
        job: The checkpoint and artifact to load, the batch and the threads.

    Attributes:
        versions: The versions of the system's packages.
        ready_s: Seconds from the start of the process until it was ready.
        load_s: Seconds of loading the model within `ready_s`, without the imports.
    """

    def __init__(self, name: str, job: Job) -> None:
        self._name, self._log = name, job.artifact.parent / "logs" / f"{job.artifact.name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        command = [_python(peer=SYSTEMS[name].peer), str(Path(__file__).with_name("peers.py")), name]
        for option in ("checkpoint", "artifact", "batch", "threads"):
            command += [f"--{option}", str(getattr(job, option))]
        environment = os.environ | {"OMP_NUM_THREADS": str(job.threads), "HF_HUB_OFFLINE": "1"}
        with self._log.open("w") as log:
            started = time.perf_counter()
            self._process = subprocess.Popen(
                command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        loaded = self._read()
        self.ready_s = time.perf_counter() - started
        self.load_s: float = loaded["load_s"]
        self.versions: dict[str, str] = loaded["versions"]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def generate(self, input_ids: list[list[int]]) -> Run:
        """Run one generation."""
        assert self._process.stdin is not None
        print(json.dumps({"input_ids": input_ids}), file=self._process.stdin, flush=True)
        answer = self._read()
        tokens: list[list[int]] = answer["tokens"]
        if [len(row) for row in tokens] != [NEW_TOKENS] * len(input_ids):
            lengths = [len(row) for row in tokens]
            raise SystemExit(f"{self._name} generated {lengths} tokens instead of {NEW_TOKENS} per row")
        return Run(tokens[0], answer["cpu_s"], answer["wall_s"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            last = self._log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise SystemExit(f"{self._name} exited with {self._process.returncode}: {' '.join(last)}\nsee {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure(jobs: dict[str, Job], rounds: int) -> tuple[dict[str, list[Run]], float]:
    """Warm each system up once, then let all generate in turn, `rounds` times.

    Returns:
        Each system's runs, and the mean number of CPUs that were busy with other processes.
    """
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, job)) for name, job in jobs.items()}
        input_ids = inputs(next(iter(jobs.values())).batch)
        for worker in workers.values():
            worker.generate(input_ids)
        runs: dict[str, list[Run]] = {name: [] for name in workers}
        started, busy_s = time.perf_counter(), _busy_s()
        for _ in range(rounds):
            for name, worker in workers.items():
                runs[name].append(worker.generate(input_ids))
        elsewhere_s = _busy_s() - busy_s - sum(run.cpu_s for each in runs.values() for run in each)
        return runs, max(0.0, elsewhere_s) / (time.perf_counter() - started)


def speed_table(title: str, jobs: dict[str, Job], runs: dict[str, list[Run]]) -> Table:
    """Times, speed relative to eager transformers and to the best int8 peer, size, and equal tokens of each system."""
    cpu = {name: [run.cpu_s for run in each] for name, each in runs.items()}
    wall = {name: [run.wall_s for run in each] for name, each in runs.items()}
    columns = ("CPU ms", "wall ms", "× eager CPU", "× eager wall", "× int8 CPU", "× int8 wall", "MB", "tokens equal")
    table = console.table("system", *columns, title=title)
    for name in runs:
        equal = sum(map(int.__eq__, runs[name][0].tokens, runs[REFERENCE][0].tokens))
        table.add_row(
            name,
            f"{1000 * statistics.median(cpu[name]):.0f}",
            f"{1000 * statistics.median(wall[name]):.0f}",
            *(_ratio(seconds[REFERENCE], seconds[name]) for seconds in (cpu, wall)),
            *(_ratio(_best_int8(seconds), seconds[name]) for seconds in (cpu, wall)),
            f"{_megabytes(jobs[name].artifact):.0f}",
            f"{equal}/{NEW_TOKENS}",
        )
    return table


class ColdStart(NamedTuple):
    """Seconds of a new process: from start to ready, of which loading, and from start to the first answer."""

    ready_s: float
    load_s: float
    answer_s: float


def cold_starts(jobs: dict[str, Job], processes: int) -> dict[str, list[ColdStart]]:
    """Cold starts of new processes, one at a time and the systems in turn; the files are in the page cache."""
    starts: dict[str, list[ColdStart]] = {name: [] for name in jobs}
    for _ in range(processes):
        for name, job in jobs.items():
            with Worker(name, job) as worker:
                first = worker.generate(inputs(job.batch))
                starts[name].append(ColdStart(worker.ready_s, worker.load_s, worker.ready_s + first.wall_s))
    return starts


def cold_table(title: str, starts: dict[str, list[ColdStart]]) -> Table:
    """The three times of each system, and the speed relative to transformers' from_pretrained."""
    columns = ("ready s", "of which loading s", "first answer s", "× ready", "× loading", "× first answer")
    table = console.table("system", *columns, title=title)
    references = list(zip(*starts[REFERENCE], strict=True))
    for name in starts:
        times = list(zip(*starts[name], strict=True))
        table.add_row(
            name,
            *(f"{statistics.median(seconds):.2f}" for seconds in times),
            *(_ratio(reference, seconds) for reference, seconds in zip(references, times, strict=True)),
        )
    return table


def _ratio(reference: Sequence[float] | None, seconds: Sequence[float]) -> str:
    if reference is None:
        return "–"
    return f"{statistics.median(other / one for other, one in zip(reference, seconds, strict=True)):.2f}"


def _best_int8(seconds: dict[str, list[float]]) -> list[float] | None:
    peers = [each for name, each in seconds.items() if SYSTEMS[name].int8]
    return min(peers, key=statistics.median, default=None)


def _busy_s() -> float:
    """Busy CPU seconds of this machine, including those that its host used."""
    times = psutil.cpu_times()
    return float(sum(getattr(times, kind) for kind in ("user", "nice", "system", "irq", "softirq", "steal")))


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in CPU_FLAGS if flag in values["flags"].split()]
    return f"{values['model name']}, {os.cpu_count()} CPUs ({' '.join(flags)})"


def _python(*, peer: bool) -> str:
    return str(ENVIRONMENT / "bin" / "python") if peer else sys.executable


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _names(valid: Iterable[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := sorted(set(names) - set(valid)):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; valid: {', '.join(valid)}")
        return names

    return parse


if __name__ == "__main__":
    main()
