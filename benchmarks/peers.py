"""One system of benchmarks/generation.py in a separate process.

    python benchmarks/peers.py SYSTEM --checkpoint FOLDER --artifact FOLDER --batch 1 --threads 1

It loads the model, reports it in a line of JSON on standard output, and then answers each line of JSON on standard
input: `{"input_ids": [[…], …]}` in, `{"tokens": [[…], …], "cpu_s": …, "wall_s": …}` out. It exits at the end of its
input. If the artifact's folder does not exist, the model is converted or compiled first.

It runs in the peers' environment and in the project's, so it imports a system's libraries only for that system.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from neuron_sum.files import new_folder

SOURCE_TOKENS = 256
NEW_TOKENS = 64

Generate = Callable[[list[list[int]]], list[list[int]]]
"""Token ids (batch, SOURCE_TOKENS) in, the new token ids (batch, NEW_TOKENS) out."""


@dataclass(frozen=True)
class Job:
    """The checkpoint, the folder of its converted form, and the batch and threads that a system is loaded for."""

    checkpoint: Path
    artifact: Path
    batch: int
    threads: int


@dataclass(frozen=True)
class System:
    """A system to compare.

    Args:
        load: Function that builds the artifact if it is missing, loads it and returns the generate function.
        modules: The modules to import before the loading time starts.
        packages: The distributions whose versions are printed.
        peer: Whether the system runs in the peers' environment.
        int8: Whether the system is one of the int8 peers.
        fixed: Whether an artifact is for one batch size.
    """

    load: Callable[[Job], Generate]
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    peer: bool = False
    int8: bool = False
    fixed: bool = False


def main() -> None:
    """Load the system, and answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--artifact", type=Path, required=True, help="folder of the converted or compiled model")
    parser.add_argument("--batch", type=int, required=True, help="batch size")
    parser.add_argument("--threads", type=int, required=True, help="number of threads")
    options = parser.parse_args()
    # The output of libraries goes to standard error, so that it does not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    system = SYSTEMS[options.system]
    for module in system.modules:
        import_module(module)
    started = time.perf_counter()
    generate = system.load(Job(options.checkpoint, options.artifact, options.batch, options.threads))
    load_s = time.perf_counter() - started
    _answer(answers, {"load_s": load_s, "versions": {name: version(name) for name in system.packages}})

    for line in sys.stdin:
        input_ids = json.loads(line)["input_ids"]
        cpu, wall = time.process_time(), time.perf_counter()
        tokens = generate(input_ids)
        cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
        _answer(answers, {"tokens": tokens, "cpu_s": cpu_s, "wall_s": wall_s})


def once(folder: Path, build: Callable[[Path], object]) -> None:
    """Let `build` fill the folder if it does not exist; an interrupted build leaves no folder."""
    if not folder.exists():
        with new_folder(folder) as unfinished:
            build(unfinished)


def _answer(stream: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=stream, flush=True)


# ---------------------------------------------------------------- neuron-sum ----------------------------------------


def _neuron_sum(job: Job, *, dtype: str) -> Generate:
    """An artifact of `neuron-sum compile`, loaded as in evaluation and serving, with every file's hash checked.

    Args:
        job: The checkpoint, the artifact's folder, the batch and the threads; OMP_NUM_THREADS equals the threads.
        dtype: The dtype: fp32, bf16 or int8.

    Returns:
        A function that generates exactly NEW_TOKENS greedily, without an earlier end of sequence.
    """
    import torch

    from neuron_sum.artifact import open_artifact
    from neuron_sum.recipes.schema import GenerateConfig
    from neuron_sum.runtimes.load import load_generator

    torch.set_num_threads(job.threads)
    if not job.artifact.exists():
        from compile.exporters.own import build, make_plan
        from compile.source import open_source

        settings = {
            "dtype": dtype,
            "batch_sizes": [job.batch],
            "source_lens": [SOURCE_TOKENS],
            "target_len": NEW_TOKENS,
        }
        source = open_source(job.checkpoint, "tiny", [f"compile.{key}={value}" for key, value in settings.items()])
        build(source, make_plan(source), job.artifact, overwrite=False, jobs=None)
    generator, _ = load_generator(open_artifact(job.artifact))
    exact = GenerateConfig(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    return lambda input_ids: generator.generate(input_ids, exact)


# ---------------------------------------------------------------- other systems -------------------------------------


def _transformers(job: Job, *, dtype: str) -> Generate:
    """Eager generate() of transformers."""
    import torch
    from transformers import T5ForConditionalGeneration

    def build(folder: Path) -> None:
        T5ForConditionalGeneration.from_pretrained(job.checkpoint, dtype=getattr(torch, dtype)).save_pretrained(folder)

    once(job.artifact, build)
    return _through_generate(T5ForConditionalGeneration.from_pretrained(job.artifact, dtype=getattr(torch, dtype)))


def _ctranslate2(job: Job, *, quantization: str | None) -> Generate:
    """CTranslate2 with its defaults, which choose kernels by the CPU (CT2_USE_MKL=1 is ten times slower on AMD)."""
    import ctranslate2

    def build(folder: Path) -> None:
        converter = ctranslate2.converters.TransformersConverter(str(job.checkpoint))
        converter.convert(str(folder), quantization=quantization, force=True)

    once(job.artifact, build)
    translator = ctranslate2.Translator(str(job.artifact), device="cpu", inter_threads=1, intra_threads=job.threads)
    tokens: list[str] = json.loads((job.artifact / "shared_vocabulary.json").read_text())
    ids = {token: index for index, token in enumerate(tokens)}

    def generate(input_ids: list[list[int]]) -> list[list[int]]:
        source = [[tokens[index] for index in row] for row in input_ids]
        results = translator.translate_batch(
            source, beam_size=1, min_decoding_length=NEW_TOKENS, max_decoding_length=NEW_TOKENS
        )
        return [[ids[token] for token in result.hypotheses[0]] for result in results]

    return generate


def _onnxruntime(job: Job, *, quantize: Callable[[Path, str, Path], None]) -> Generate:
    """ONNX Runtime behind optimum's generate().

    Uses two separate decoders without IO binding: optimum-onnx assumes a head width of d_model / num_heads, which is
    wrong for FLAN-T5-small, so that a merged decoder and IO binding fail there; for other models they are not faster.
    The T5 fusions of ONNX Runtime (optimize_model) create operators without a CPU kernel.
    """
    import onnxruntime
    from optimum.onnxruntime import ORTModelForSeq2SeqLM

    def build(folder: Path) -> None:
        exported = job.artifact.parent / "onnx"
        once(exported, partial(_export, job.checkpoint))
        for name in ("encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"):
            quantize(exported, name, folder)
        for name in ("config.json", "generation_config.json"):
            shutil.copy(exported / name, folder)

    once(job.artifact, build)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = job.threads, 1
    model = ORTModelForSeq2SeqLM.from_pretrained(job.artifact, use_merged=False, session_options=options)
    return _through_generate(model)


def _export(checkpoint: Path, folder: Path) -> None:
    from optimum.exporters.onnx import main_export

    main_export(
        str(checkpoint), folder, task="text2text-generation-with-past", do_validation=False, no_post_process=True
    )


def _quantize_dynamic(exported: Path, name: str, folder: Path) -> None:
    """Int8 weights per output channel, uint8 activations per tensor: optimum's preset for AVX-512 VNNI."""
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    ORTQuantizer.from_pretrained(exported, file_name=name).quantize(
        quantization_config=config, save_dir=folder, file_suffix=""
    )


def _quantize_blocks(exported: Path, name: str, folder: Path) -> None:
    """MatMulNBits: int8 weights in blocks of 128 inputs, computed in int8 (accuracy level 4); fp32 embeddings."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(exported / name), bits=8, block_size=128, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(folder / name), False)


def _through_generate(model: Any) -> Generate:
    """Greedy search of exactly NEW_TOKENS through transformers' generate()."""
    import torch

    def generate(input_ids: list[list[int]]) -> list[list[int]]:
        source = torch.tensor(input_ids)
        output = model.generate(
            input_ids=source,
            attention_mask=torch.ones_like(source),
            do_sample=False,
            num_beams=1,
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
        )
        new: list[list[int]] = output[:, 1:].tolist()
        return new

    return generate


_transformers_system = partial(
    System, modules=("torch", "transformers.models.t5.modeling_t5"), packages=("transformers", "torch")
)
_ctranslate2_system = partial(System, modules=("ctranslate2",), packages=("ctranslate2",), peer=True)
_onnxruntime_system = partial(
    System,
    modules=("onnxruntime", "optimum.onnxruntime.modeling_seq2seq"),
    packages=("onnxruntime", "optimum-onnx", "optimum", "transformers", "torch"),
    peer=True,
    int8=True,
)
_neuron_sum_system = partial(System, modules=("torch",), packages=("neuron-sum", "torch"), fixed=True)

SYSTEMS: dict[str, System] = {
    "transformers-fp32": _transformers_system(partial(_transformers, dtype="float32")),
    "transformers-bf16": _transformers_system(partial(_transformers, dtype="bfloat16")),
    "ctranslate2-fp32": _ctranslate2_system(partial(_ctranslate2, quantization=None)),
    "ctranslate2-int8": _ctranslate2_system(partial(_ctranslate2, quantization="int8"), int8=True),
    "onnxruntime-int8": _onnxruntime_system(partial(_onnxruntime, quantize=_quantize_dynamic)),
    "onnxruntime-int8-blocks": _onnxruntime_system(partial(_onnxruntime, quantize=_quantize_blocks)),
    "ours-fp32": _neuron_sum_system(partial(_neuron_sum, dtype="fp32")),
    "ours-bf16": _neuron_sum_system(partial(_neuron_sum, dtype="bf16")),
    "ours-int8": _neuron_sum_system(partial(_neuron_sum, dtype="int8")),
}


if __name__ == "__main__":
    main()
