"""A trained run through optimum-neuron's own exporter: every Llama for inf2 and trn1, and T5 as the second way.

What upstream leaves wrong or ignores is refused here, before anything is compiled; docs/compile.md has the list. The
export itself runs in a process of its own (optimum_process.py): upstream changes its environment, its compilers write
to standard output, and one that is killed takes nobody with it.
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
from compile.exporters.common import check_output, effective, special_tokens
from compile.exporters.optimum_process import CHECKPOINT, EXPORTED, RESULT, Request
from compile.graphs.buckets import recipe_buckets
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
    SourceRecord,
    artifact_name,
    hash_files,
    open_artifact,
    write_manifest,
)
from neuron_sum.errors import CompileError, Interrupted, RecipeError
from neuron_sum.models.base import is_decoder_only
from neuron_sum.platform.matrix import platform_row
from neuron_sum.recipes.schema import CompileConfig, GenerateConfig
from neuron_sum.runtimes import optimum

PUBLIC = ("torch", "transformers")
"""Of optimum.DISTRIBUTIONS, what does not tell one SDK from another."""
LOGS = "logs"
"""In neuron-sum's cache: what upstream and the compiler said, one file per artifact, kept."""
SMALLEST_VOCABULARY = 256
"""Upstream's sampler sorts the 256 best tokens on the device, also for greedy search."""
UNFIT_ROPE = ("dynamic", "longrope")
"""Rotary positions that change with the prompt's length; a static graph has one table."""
BEAM_DIFFERENCE = (
    "beam search through optimum-neuron is not quite transformers': a finished beam's length counts the start token "
    "(its scorer is given no decoder_prompt_len), and it stops by BeamSearchScorer's rule, not generate()'s; `compile "
    "verify` says how many summaries that changes"
)


@dataclass(frozen=True)
class OptimumPlan:
    """What one artifact will consist of.

    Attributes:
        config: Of the model.
        settings: The recipe's compile section.
        bucket: The only one.
        num_beams: The only width.
    """

    config: PretrainedConfig
    settings: CompileConfig
    bucket: Bucket
    num_beams: int

    @property
    def sequence_length(self) -> int:
        """Upstream's one length: of a Llama's prompt and answer together, of a T5's prompt and answer each."""
        if is_decoder_only(self.config):
            return self.bucket.source_len + self.bucket.target_len
        return max(self.bucket.source_len, self.bucket.target_len)


def is_chosen(source: Source) -> bool:
    """Whether a source is compiled by optimum-neuron: because its recipe says so, or because it is a Llama."""
    settings = source.recipe.compile
    if settings.target == "cpu":
        return False
    if settings.neuron.exporter is None:
        return is_decoder_only(source.config())
    return settings.neuron.exporter == "optimum"


def make_plan(source: Source) -> OptimumPlan:
    """What will be compiled; reads the model's configuration, not its weights.

    Raises:
        RecipeError: With everything that upstream does not do, or does wrong.
    """
    config, settings, recipe = source.config(), source.recipe.compile, source.recipe
    buckets, num_beams = recipe_buckets(recipe)
    faults = [*_faults(source, num_beams), *(_llama if is_decoder_only(config) else _t5)(config, source)]
    if faults:
        raise RecipeError(
            "optimum-neuron's exporter does not do this:\n" + "\n".join(f"  {fault}" for fault in faults),
            "--set KEY=VALUE changes the recipe; docs/compile.md says why each is refused",
        )
    return OptimumPlan(config, settings, buckets[0], num_beams[0])


def build(source: Source, plan: OptimumPlan, output: Path, *, overwrite: bool) -> Artifact:
    """Exports the model and writes the artifact; a failure leaves a log and nothing else.

    Args:
        source: What to compile.
        plan: From `make_plan`.
        output: The folder to write; complete or not there.
        overwrite: Whether an artifact there is replaced.

    Raises:
        PlatformError: If the Neuron SDK is not installed.
        RunError: If the folder is taken.
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
        recipe = effective(source.recipe, bucket.source_len, bucket.target_len, (plan.num_beams,))
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
            prompt=PromptRecord(template=prompt.template, sha256=prompt.sha256),
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
            source=SourceRecord(path=str(source.path.resolve()), weights_sha256=source.weights_sha256()),
            files=hash_files(folder),
        )
        write_manifest(folder, manifest)
    return open_artifact(output)


def _faults(source: Source, num_beams: tuple[int, ...]) -> Iterator[str]:
    """What upstream does for neither family."""
    settings, neuron, generate = source.recipe.compile, source.recipe.compile.neuron, source.recipe.generate
    if settings.adapters is not None:
        yield "compile.adapters: its graphs have no adapter slots; LoRA is merged (compile.adapters=null)"
    if source.soft_prompt_tokens:
        yield "method prompt_tuning: its graphs take token ids alone; LoRA and full fine-tuning are merged"
    if len(settings.batch_sizes) > 1:
        largest = max(settings.batch_sizes)
        yield (
            f"compile.batch_sizes = {list(settings.batch_sizes)}: an export has one batch size and its own copy of the "
            f"weights; smaller batches are padded to it (compile.batch_sizes=[{largest}])"
        )
    if settings.source_lens is not None and len(settings.source_lens) > 1:
        yield f"compile.source_lens = {list(settings.source_lens)}: an export has one length (compile.source_lens=[N])"
    if len(num_beams) > 1:
        yield f"compile.num_beams = {list(num_beams)}: an export has one beam width (compile.num_beams=[1])"
    for name, reason in optimum.UNSUPPORTED.items():
        default = GenerateConfig.model_fields[name].default
        if (asked := getattr(generate, name)) != default:
            yield f"generate.{name} = {asked}: {reason} (generate.{name}={default})"
    if settings.kv_dtype not in (None, settings.dtype):
        yield f"compile.kv_dtype = {settings.kv_dtype}: keys and values have the weights' dtype (compile.kv_dtype=null)"
    if neuron.cache_write != "in_place":
        yield "compile.neuron.cache_write: its graphs have their own way (leave it out)"
    if neuron.core:
        yield f"compile.neuron.core = {neuron.core}: it takes the first visible core (NEURON_RT_VISIBLE_CORES picks it)"


def _llama(config: PretrainedConfig, source: Source) -> Iterator[str]:
    neuron = source.recipe.compile.neuron
    _, beams = recipe_buckets(source.recipe)
    if beams != (1,):
        asked = ", ".join(map(str, beams))
        yield f"beams: {asked}; upstream's Llama has greedy search alone (compile.num_beams=[1] generate.num_beams=1)"
    if (neuron.auto_cast, neuron.optlevel) != ("none", 2):
        yield (
            "compile.neuron.auto_cast and optlevel: upstream's Llama is compiled with --auto-cast=none -O2 "
            "(compile.dtype=bf16 is how it gets bf16)"
        )
    if neuron.inline_weights:
        yield "compile.neuron.inline_weights: upstream's Llama keeps its weights outside (inline_weights=false)"
    if getattr(config, "attention_bias", False):
        yield "attention_bias: upstream's Llama leaves biases of its projections out"
    if (head_dim := getattr(config, "head_dim", None)) and head_dim * config.num_attention_heads != config.hidden_size:
        yield f"head_dim = {head_dim}: upstream's rotary positions are for hidden_size / num_attention_heads"
    rope = getattr(config, "rope_scaling", None) or {}
    if (kind := rope.get("rope_type", rope.get("type"))) in UNFIT_ROPE:
        yield f"rope_scaling {kind}: it changes with the prompt's length, a static graph has one table"
    if config.vocab_size < SMALLEST_VOCABULARY:
        yield f"a vocabulary of {config.vocab_size}: upstream's sampler wants {SMALLEST_VOCABULARY}"


def _t5(config: PretrainedConfig, source: Source) -> Iterator[str]:
    settings, neuron = source.recipe.compile, source.recipe.compile.neuron
    own = "or compile.neuron.exporter=own"
    if max(settings.batch_sizes) > 1:
        yield (
            "compile.batch_sizes: upstream's T5 is right for one prompt at a time; greedy search fails with more, beam "
            f"search does not export (compile.batch_sizes=[1], {own})"
        )
    if settings.dtype != "fp32":
        yield (
            f"compile.dtype = {settings.dtype}: upstream's T5 holds keys and values in fp32 and does not export with "
            f"other weights (compile.dtype=fp32, compile.neuron.auto_cast=matmult, {own})"
        )
    if neuron.auto_cast == "all":
        yield f"compile.neuron.auto_cast = all: norms and softmax too, for T5 not proven (auto_cast=matmult, {own})"
    if neuron.tensor_parallel_size > 1:
        yield "compile.neuron.tensor_parallel_size: for Llama alone (tensor_parallel_size=1)"


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A folder beside another, on the same disk, so that what was exported only moves; named to be swept if left."""
    path = Path(tempfile.mkdtemp(prefix=f"{folder.name}-export-", dir=folder.parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _write_checkpoint(source: Source, plan: OptimumPlan, folder: Path) -> None:
    """The plain model that upstream reads, LoRA merged; for a Llama in the dtype it is compiled in."""
    model, _ = source.load_for_compile()
    if plan.settings.dtype == "bf16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder)


def _export(plan: OptimumPlan, scratch: Path, log: Path, versions: dict[str, str]) -> Compilation:
    """Runs the exporter over scratch/checkpoint; it leaves scratch/exported."""
    neuron = plan.settings.neuron
    request = Request(
        decoder_only=is_decoder_only(plan.config),
        target=plan.settings.target,
        batch_size=plan.bucket.batch,
        sequence_length=plan.sequence_length,
        num_beams=plan.num_beams,
        auto_cast=neuron.auto_cast,
        auto_cast_type=neuron.auto_cast_type,
        optlevel=neuron.optlevel,
        inline_weights=neuron.inline_weights,
        tensor_parallel_size=neuron.tensor_parallel_size,
    )
    files.write_json(scratch / "request.json", asdict(request))
    log.parent.mkdir(parents=True, exist_ok=True)
    console.note(f"optimum-neuron exports; its log: {log}")
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
        inline_weights=neuron.inline_weights,
        tensor_parallel_size=neuron.tensor_parallel_size,
        core=neuron.core,
        sdk=platform_row({**vendors, COMPILER: compiler}),
    )


def _failed(code: int, scratch: Path, log: Path) -> CompileError:
    """As for our own graphs: usually it is neuronx-cc, its child, that was killed, and what is left is in the logs."""
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return failures.failed(
        "optimum-neuron did not export the model",
        said[-1] if said and code != -signal.SIGKILL else failures.ended(code),
        [log, *failures.compiler_logs(scratch)],
        log,
        memory_advice(),
    )


def memory_advice() -> str:
    """What to do where the export was killed for want of memory; upstream decides how many compilers run at once."""
    smaller = "a smaller compile.batch_sizes or data.max_source_length needs less"
    return larger_host(smaller) or smaller


def _run(scratch: Path, log: Path) -> int:
    """The exporter's process, which ends with this one; its exit code."""
    package = str(Path(__file__).parents[2])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HF_HUB_OFFLINE": "1",  # upstream would ask a hub for graphs that others compiled
        "BASE_COMPILE_WORK_DIR": f"{scratch / 'work'}/",
    }
    with log.open("wb") as said:
        # Until it is waited for, a Ctrl-C at the terminal must not reach it: it has a group of its own.
        process = subprocess.Popen(
            [sys.executable, "-m", "compile.exporters.optimum_process"],
            cwd=scratch,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait()
        except KeyboardInterrupt:
            raise Interrupted("stopped; nothing was written", "the same command starts again") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
