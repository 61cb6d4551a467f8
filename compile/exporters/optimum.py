"""The exporter through optimum-neuron: for decoder-only models on inf2 and trn1, and as an alternative for T5.

Settings that upstream ignores or gets wrong are rejected before anything is compiled; docs/compile.md has the list. The
export runs in a separate process (optimum_process.py), because upstream changes its environment, its compilers write to
standard output, and a compiler that is killed must not end the caller.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import PretrainedConfig

from compile import failures
from compile.exporters.common import check_output, effective_recipe, special_tokens
from compile.exporters.optimum_process import CHECKPOINT, EXPORTED, RESULT, Request
from compile.graphs.buckets import check_context, recipe_buckets
from compile.source import Source
from compile.targets.neuron import COMPILER, larger_host
from neuron_sum import __version__, console, files
from neuron_sum.artifact import (
    RECIPE,
    TOKENIZER,
    Artifact,
    Bucket,
    Compilation,
    Manifest,
    PromptRecord,
    artifact_name,
    hash_files,
    open_artifact,
    write_manifest,
)
from neuron_sum.errors import CompileError, Interrupted, RecipeError
from neuron_sum.models.base import is_decoder_only
from neuron_sum.platform import optimum_limits
from neuron_sum.platform.matrix import platform_row
from neuron_sum.recipes.schema import CompileConfig, GenerateConfig
from neuron_sum.runtimes import optimum

PUBLIC = ("torch", "transformers")
"""The packages of optimum.DISTRIBUTIONS whose versions do not identify an SDK."""
LOGS = "logs"
"""A folder in neuron-sum's cache with the log of upstream and the compiler, one file per artifact."""
BEAM_DIFFERENCE = (
    "beam search through optimum-neuron differs slightly from transformers: a finished beam's length includes the "
    "start token (decoder_prompt_len is not passed to its scorer), and it stops by the rule of BeamSearchScorer, not "
    "of generate(); `compile verify` prints how many summaries differ"
)


@dataclass(frozen=True)
class OptimumPlan:
    """The contents of an artifact.

    Attributes:
        config: The model's configuration.
        settings: The recipe's compile section.
        bucket: The only bucket.
        num_beams: The only beam width.
    """

    config: PretrainedConfig
    settings: CompileConfig
    bucket: Bucket
    num_beams: int

    @property
    def sequence_length(self) -> int:
        """Upstream's only length: for a decoder-only model of prompt and answer together, for a T5 of each of them."""
        if is_decoder_only(self.config):
            return self.bucket.source_len + self.bucket.target_len
        return max(self.bucket.source_len, self.bucket.target_len)


def is_chosen(source: Source) -> bool:
    """Whether optimum-neuron compiles a source: if its recipe requests it, or by default if it is decoder-only."""
    settings = source.recipe.compile
    if settings.target == "cpu":
        return False
    if settings.neuron.exporter is None:
        return is_decoder_only(source.config())
    return settings.neuron.exporter == "optimum"


def make_plan(source: Source) -> OptimumPlan:
    """The plan of a source; reads the model's configuration, not its weights.

    Raises:
        ModelError: For an adapter that cannot be merged.
        RecipeError: With every setting that upstream does not support, or gets wrong.
    """
    config, settings, recipe = source.config(), source.recipe.compile, source.recipe
    buckets, num_beams = recipe_buckets(recipe)
    check_context(config, buckets)
    faults = [*_faults(source, num_beams), *(_causal_lm if is_decoder_only(config) else _t5)(config, source)]
    if faults:
        raise RecipeError(
            "optimum-neuron's exporter does not support this recipe:\n" + "\n".join(f"  {fault}" for fault in faults),
            "change the recipe with --set KEY=VALUE; docs/compile.md has the reasons",
        )
    source.check_adapter(None)
    return OptimumPlan(config, settings, buckets[0], num_beams[0])


def build(source: Source, plan: OptimumPlan, output: Path, *, overwrite: bool) -> Artifact:
    """Exports the model and writes the artifact; a failure leaves only a log.

    Args:
        source: The run or checkpoint to compile.
        plan: The result of `make_plan`.
        output: The folder to write; after a failure it does not exist.
        overwrite: Whether an existing artifact is replaced.

    Raises:
        PlatformError: If the Neuron SDK is not installed.
        RunError: If the folder is in use.
        CompileError: If the export fails, with its log.
        Interrupted: On Ctrl-C or SIGTERM.
    """
    versions = optimum.stack()
    output = output.resolve()
    check_output(output, overwrite=overwrite)
    log = files.cache_folder() / LOGS / f"{artifact_name(output)}.log"
    if plan.num_beams > 1:
        console.warn(BEAM_DIFFERENCE)
    tokenizer = source.tokenizer()
    with files.new_folder(output) as folder, _scratch(folder) as scratch:
        _write_checkpoint(source, plan, scratch / CHECKPOINT)
        compilation = _export(plan, scratch, log, versions)
        (scratch / EXPORTED).rename(folder / optimum.FOLDER)
        plan.config.save_pretrained(folder / TOKENIZER)
        tokenizer.save_pretrained(folder / TOKENIZER)
        bucket, prompt = plan.bucket, source.recipe.prompt.resolve()
        recipe = effective_recipe(source.recipe, bucket.source_len, bucket.target_len, (plan.num_beams,))
        files.write_text(folder / RECIPE, recipe.to_yaml())
        manifest = Manifest(
            neuron_sum=__version__,
            model_type=plan.config.model_type,
            runtime="optimum",
            target=plan.settings.target,
            dtype=plan.settings.dtype,
            kv_dtype="fp32" if plan.settings.dtype == "fp32" else "bf16",
            stack=versions,
            compilation=compilation,
            prompt=PromptRecord.of(prompt),
            tokens=special_tokens(tokenizer, plan.config),
            buckets=(bucket,),
            num_beams=(plan.num_beams,),
            state=None,
            graphs=(),
            aliases={},
            adapters=None,
            adapter_targets={},
            adapter_stacks={},
            default_adapter=None,
            source=source.record(),
            files=hash_files(folder),
        )
        write_manifest(folder, manifest)
    return open_artifact(output)


def _faults(source: Source, num_beams: tuple[int, ...]) -> Iterator[str]:
    """The settings that upstream supports for no family."""
    settings, neuron, generate = source.recipe.compile, source.recipe.compile.neuron, source.recipe.generate
    if settings.adapters is not None:
        yield "compile.adapters: its graphs have no adapter slots; LoRA is merged (compile.adapters=null)"
    if source.soft_prompt_tokens:
        yield "method prompt_tuning: its graphs take only token ids; use LoRA, which is merged, or full fine-tuning"
    if len(settings.batch_sizes) > 1:
        largest = max(settings.batch_sizes)
        yield (
            f"compile.batch_sizes = {list(settings.batch_sizes)}: an export has one batch size and a separate copy of "
            f"the weights; smaller batches are padded to it (compile.batch_sizes=[{largest}])"
        )
    if settings.source_lens is not None and len(settings.source_lens) > 1:
        yield f"compile.source_lens = {list(settings.source_lens)}: an export has one length (compile.source_lens=[N])"
    if len(num_beams) > 1:
        yield f"compile.num_beams = {list(num_beams)}: an export has one beam width (compile.num_beams=[1])"
    if settings.greedy_steps > 1:
        yield f"compile.greedy_steps = {settings.greedy_steps}: its graphs run one step (compile.greedy_steps=1)"
    for name, reason in optimum.UNSUPPORTED.items():
        default = GenerateConfig.model_fields[name].default
        if (value := getattr(generate, name)) != default:
            yield f"generate.{name} = {value}: {reason} (generate.{name}={default})"
    if source.recipe.output.sections:
        yield f"output.sections: {optimum.NO_SECTIONS} (output.sections=[] data.columns.sections=null)"
    if settings.kv_dtype not in (None, settings.dtype):
        yield f"compile.kv_dtype = {settings.kv_dtype}: keys and values have the weights' dtype (compile.kv_dtype=null)"
    if neuron.cache_write != "in_place":
        yield f"compile.neuron.cache_write = {neuron.cache_write}: its graphs write the cache differently (remove it)"


def _causal_lm(config: PretrainedConfig, source: Source) -> Iterator[str]:
    neuron, family = source.recipe.compile.neuron, config.model_type
    yield from optimum_limits.family_faults(config)
    _, beams = recipe_buckets(source.recipe)
    if beams != (1,):
        widths = ", ".join(map(str, beams))
        yield (
            f"beams: {widths}; upstream's {family} has only greedy search (compile.num_beams=[1] generate.num_beams=1)"
        )
    if (neuron.auto_cast, neuron.optlevel) != ("none", 2):
        yield (
            f"compile.neuron.auto_cast and optlevel: upstream's {family} is compiled with --auto-cast=none -O2 "
            "(use compile.dtype=bf16 for bf16)"
        )
    if neuron.inline_weights:
        yield f"compile.neuron.inline_weights: upstream's {family} stores its weights separately (inline_weights=false)"
    yield from optimum_limits.model_faults(config, neuron.tensor_parallel_size)


def _t5(config: PretrainedConfig, source: Source) -> Iterator[str]:
    settings, neuron = source.recipe.compile, source.recipe.compile.neuron
    alternative = "or compile.neuron.exporter=own"
    if max(settings.batch_sizes) > 1:
        yield (
            "compile.batch_sizes: upstream's T5 is correct for one prompt at a time; greedy search fails with more, "
            f"beam search does not export (compile.batch_sizes=[1], {alternative})"
        )
    if settings.dtype != "fp32":
        yield (
            f"compile.dtype = {settings.dtype}: upstream's T5 holds keys and values in fp32 and does not export with "
            f"other weights (compile.dtype=fp32, compile.neuron.auto_cast=matmult, {alternative})"
        )
    if neuron.auto_cast == "all":
        yield (
            "compile.neuron.auto_cast = all: it includes norms and softmax, which is not tested for T5 "
            f"(auto_cast=matmult, {alternative})"
        )
    if neuron.tensor_parallel_size > 1:
        yield (
            f"compile.neuron.tensor_parallel_size = {neuron.tensor_parallel_size}: only decoder-only models support it "
            "(tensor_parallel_size=1)"
        )


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A temporary folder next to another, so that the export is only renamed; a later run can find and remove it."""
    path = Path(tempfile.mkdtemp(prefix=f"{folder.name}-export-", dir=folder.parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write_checkpoint(source: Source, plan: OptimumPlan, folder: Path) -> None:
    """Writes the plain model that upstream reads, with LoRA merged; a bf16 plan stores the weights in bf16."""
    model, _ = source.load_for_compile()
    if plan.settings.dtype == "bf16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder)


def _export(plan: OptimumPlan, scratch: Path, log: Path, versions: dict[str, str]) -> Compilation:
    """Runs the exporter on scratch/checkpoint; it writes scratch/exported."""
    neuron, decoder_only = plan.settings.neuron, is_decoder_only(plan.config)
    inline_weights = not decoder_only and neuron.inline_weights is not False
    request = Request(
        decoder_only=decoder_only,
        target=plan.settings.target,
        batch_size=plan.bucket.batch,
        sequence_length=plan.sequence_length,
        num_beams=plan.num_beams,
        auto_cast=neuron.auto_cast,
        auto_cast_type=neuron.auto_cast_type,
        optlevel=neuron.optlevel,
        inline_weights=inline_weights,
        tensor_parallel_size=neuron.tensor_parallel_size,
    )
    files.write_json(scratch / "request.json", asdict(request))
    log.parent.mkdir(parents=True, exist_ok=True)
    console.note(f"exporting with optimum-neuron; log: {log}")
    if code := _run(scratch, log):
        raise _failed(code, scratch, log)
    result = files.read_json(scratch / RESULT)
    compiler = result["compiler"].partition("+")[0]
    vendors = {name: version for name, version in versions.items() if name not in PUBLIC}
    return Compilation(
        compiler=compiler,
        arguments=tuple(result["arguments"]),
        exporter="optimum",
        cache_write=None,
        inline_weights=inline_weights,
        tensor_parallel_size=neuron.tensor_parallel_size,
        sdk=platform_row({**vendors, COMPILER: compiler}),
    )


def _failed(code: int, scratch: Path, log: Path) -> CompileError:
    """The error of a failed export; usually its child neuronx-cc was killed, and only the logs have the reason."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return failures.compile_error(
        "optimum-neuron did not export the model",
        lines[-1] if lines and code != -signal.SIGKILL else failures.exit_reason(code),
        [log, *failures.compiler_logs(scratch)],
        log,
        memory_advice(),
    )


def memory_advice() -> str:
    """The hint if memory ran out; upstream decides how many compilers run in parallel."""
    smaller = "reduce compile.batch_sizes or data.max_source_length"
    return larger_host(smaller) or smaller


def _run(scratch: Path, log: Path) -> int:
    """Runs the exporter in a process that ends with this one, and returns its exit code."""
    package = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HF_HUB_OFFLINE": "1",  # otherwise upstream looks for compiled graphs on a hub
        "BASE_COMPILE_WORK_DIR": f"{scratch / 'work'}/",
    }
    with log.open("wb") as output:
        # In a separate session, so that a Ctrl-C at the terminal reaches only this process.
        process = subprocess.Popen(
            [sys.executable, "-m", "compile.exporters.optimum_process"],
            cwd=scratch,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait()
        except KeyboardInterrupt:
            raise Interrupted("stopped; nothing was written", "repeat the command to start again") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
