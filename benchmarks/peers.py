"""One system of benchmarks/generation.py in a separate process.

    python benchmarks/peers.py SYSTEM --checkpoint FOLDER --artifact FOLDER --batch 1 --threads 1

It loads the model, reports it in a line of JSON on standard output, and then answers each line of JSON on standard
input: `{"input_ids": [[…], …], "new_tokens": …}` in, `{"tokens": [[…], …], "cpu_s": …, "wall_s": …, "total_cpu_s": …}`
out, where the last is the CPU time since the start of the process. It exits at the end of its input. If the artifact's
folder does not exist, the model is converted or compiled first.

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

SOURCE_TOKENS, NEW_TOKENS = 256, 64
LLAMA_SOURCE_TOKENS, LLAMA_NEW_TOKENS = 448, 96  # the lengths of the recipe smollm2-lora

Generate = Callable[[list[list[int]], int], list[list[int]]]
"""Token ids (batch, source tokens) and a number of new tokens in, the new token ids (batch, new tokens) out."""


@dataclass(frozen=True)
class Job:
    """The checkpoint, the folder of its converted form, and the batch and threads that a system is loaded for."""

    checkpoint: Path
    artifact: Path
    batch: int
    threads: int

    @property
    def decoder_only(self) -> bool:
        """Whether the model is a Llama; otherwise it is a T5."""
        config = json.loads((self.checkpoint / "config.json").read_text(encoding="utf-8"))
        return bool(config["model_type"] == "llama")

    @property
    def source_tokens(self) -> int:
        """The number of tokens of each prompt."""
        return LLAMA_SOURCE_TOKENS if self.decoder_only else SOURCE_TOKENS

    @property
    def new_tokens(self) -> int:
        """The largest number of new tokens."""
        return LLAMA_NEW_TOKENS if self.decoder_only else NEW_TOKENS


@dataclass(frozen=True)
class System:
    """A system to compare.

    Args:
        load: Function that builds the artifact if it is missing, loads it and returns the generate function.
        modules: The modules to import before the loading time starts.
        packages: The distributions whose versions are printed.
        dtype: The dtype of the weights.
        peer: Whether the system runs in the peers' environment.
        fixed: Whether an artifact is for one batch size.
        t5: Whether it runs T5.
        llama: Whether it runs Llama.
    """

    load: Callable[[Job], Generate]
    modules: tuple[str, ...]
    packages: tuple[str, ...]
    dtype: str
    peer: bool = False
    fixed: bool = False
    t5: bool = True
    llama: bool = True


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
        request = json.loads(line)
        cpu, wall = time.process_time(), time.perf_counter()
        tokens = generate(request["input_ids"], request["new_tokens"])
        cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
        _answer(answers, {"tokens": tokens, "cpu_s": cpu_s, "wall_s": wall_s, "total_cpu_s": time.process_time()})


def once(folder: Path, build: Callable[[Path], object]) -> None:
    """Let `build` fill the folder if it does not exist; an interrupted build leaves no folder."""
    if not folder.exists():
        with new_folder(folder) as unfinished:
            build(unfinished)


def _answer(stream: TextIO, answer: dict[str, Any]) -> None:
    print(json.dumps(answer), file=stream, flush=True)


# ---------------------------------------------------------------- neuron-sum ----------------------------------------


def _neuron_sum(job: Job, *, dtype: str) -> Generate:
    """An artifact of `neuron-sum compile`, loaded as in serving, with every file's hash checked.

    Args:
        job: The checkpoint, the artifact's folder, the batch and the threads; OMP_NUM_THREADS equals the threads.
        dtype: The dtype: fp32, bf16 or int8.

    Returns:
        A function that generates greedily, without an earlier end of sequence.
    """
    from neuron_sum.platform import memory
    from neuron_sum.runtimes.native import preload

    memory.keep_freed()
    preload()
    from neuron_sum.artifact import open_artifact
    from neuron_sum.recipes.schema import GenerateConfig
    from neuron_sum.runtimes.load import load_generator

    if not job.artifact.exists():
        from compile.exporters.own import build, make_plan
        from compile.source import open_source

        settings = {
            "dtype": dtype,
            "batch_sizes": [job.batch],
            "source_lens": [job.source_tokens],
            "target_len": job.new_tokens,
        }
        recipe = "smollm2-lora" if job.decoder_only else "tiny"
        source = open_source(job.checkpoint, recipe, [f"compile.{key}={value}" for key, value in settings.items()])
        build(source, make_plan(source), job.artifact, overwrite=False, jobs=None)
    generator, _ = load_generator(open_artifact(job.artifact))

    def generate(input_ids: list[list[int]], new_tokens: int) -> list[list[int]]:
        return generator.generate(input_ids, GenerateConfig(max_new_tokens=new_tokens, min_new_tokens=new_tokens))

    return generate


# ---------------------------------------------------------------- other systems -------------------------------------


def _transformers(job: Job, *, dtype: str) -> Generate:
    """Eager generate() of transformers."""
    import torch
    from transformers import LlamaForCausalLM, T5ForConditionalGeneration

    model = LlamaForCausalLM if job.decoder_only else T5ForConditionalGeneration

    def build(folder: Path) -> None:
        model.from_pretrained(job.checkpoint, dtype=getattr(torch, dtype)).save_pretrained(folder)

    once(job.artifact, build)
    return _through_generate(model.from_pretrained(job.artifact, dtype=getattr(torch, dtype)), job)


def _ctranslate2(job: Job, *, quantization: str | None) -> Generate:
    """CTranslate2 with its defaults, which choose kernels by the CPU (CT2_USE_MKL=1 is ten times slower on AMD)."""
    import ctranslate2

    def build(folder: Path) -> None:
        converter = ctranslate2.converters.TransformersConverter(str(job.checkpoint))
        converter.convert(str(folder), quantization=quantization, force=True)

    once(job.artifact, build)
    place = {"device": "cpu", "inter_threads": 1, "intra_threads": job.threads}
    vocabulary = "vocabulary.json" if job.decoder_only else "shared_vocabulary.json"
    tokens: list[str] = json.loads((job.artifact / vocabulary).read_text(encoding="utf-8"))
    ids = {token: index for index, token in enumerate(tokens)}
    if job.decoder_only:
        generator = ctranslate2.Generator(str(job.artifact), **place)
    else:
        translator = ctranslate2.Translator(str(job.artifact), **place)

    def generate(input_ids: list[list[int]], new_tokens: int) -> list[list[int]]:
        source = [[tokens[index] for index in row] for row in input_ids]
        if job.decoder_only:
            results = generator.generate_batch(
                source, beam_size=1, min_length=new_tokens, max_length=new_tokens, include_prompt_in_result=False
            )
            return [result.sequences_ids[0] for result in results]
        results = translator.translate_batch(
            source, beam_size=1, min_decoding_length=new_tokens, max_decoding_length=new_tokens
        )
        return [[ids[token] for token in result.hypotheses[0]] for result in results]

    return generate


def _openvino(job: Job, *, int8: bool) -> Generate:
    """OpenVINO behind optimum-intel's generate(); int8 weights are NNCF's 8-bit compression, bf16 is the computation.

    With int8 weights, OpenVINO's defaults choose the dtype of the computation and quantize activations at run time.
    """
    from optimum.exporters.openvino import stateful
    from optimum.intel import OVModelForCausalLM, OVModelForSeq2SeqLM

    insert_state = stateful.insert_state_for_nodes

    def insert_named_state(graph: Any, nodes: list[Any]) -> None:
        # optimum-intel 1.27.0 names each state after its tensor, and in T5's cross-attention some have no name.
        for node in nodes:
            for output in node.outputs():
                output.get_tensor().set_names(output.get_names() or {node.get_friendly_name()})
        insert_state(graph, nodes)

    stateful.insert_state_for_nodes = insert_named_state

    model = OVModelForCausalLM if job.decoder_only else OVModelForSeq2SeqLM

    def build(folder: Path) -> None:
        model.from_pretrained(job.checkpoint, export=True, compile=False, load_in_8bit=int8).save_pretrained(folder)

    once(job.artifact, build)
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads}
    if not int8:
        settings["INFERENCE_PRECISION_HINT"] = "bf16"
    return _through_generate(model.from_pretrained(job.artifact, ov_config=settings), job)


def _llama_cpp(job: Job, *, kind: str) -> Generate:
    """llama.cpp through its C functions, with its defaults, compiled for this CPU; see gguf_peer.py.

    The file is quantized again from the published one (Q4_1), of which the checkpoint has the exact values. Rows of 576
    values do not fit the blocks of Q4_K, for which llama.cpp takes 5 or 8 bits.
    """
    import gguf_peer

    published = job.artifact.parent / "gguf"
    once(published, gguf_peer.download_published)
    once(job.artifact, partial(gguf_peer.quantize, published, kind))
    length = job.source_tokens + job.new_tokens
    return gguf_peer.load(job.artifact, job.batch, job.threads, job.source_tokens, length)


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
    return _through_generate(model, job)


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


def _through_generate(model: Any, job: Job) -> Generate:
    """Greedy search of an exact number of tokens through transformers' generate()."""
    import torch

    def generate(input_ids: list[list[int]], new_tokens: int) -> list[list[int]]:
        source = torch.tensor(input_ids)
        output = model.generate(
            input_ids=source,
            attention_mask=torch.ones_like(source),
            do_sample=False,
            num_beams=1,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
        )
        # A decoder-only model's output starts with the prompt, that of T5 with the start token.
        new: list[list[int]] = output[:, source.shape[1] if job.decoder_only else 1 :].tolist()
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
    dtype="int8",
    peer=True,
    llama=False,
)
_openvino_system = partial(
    System,
    modules=("openvino", "optimum.intel"),
    packages=("openvino", "optimum-intel", "nncf", "transformers", "torch"),
    peer=True,
)
_llama_cpp_system = partial(System, modules=("llama_cpp",), packages=("llama-cpp-python",), peer=True, t5=False)
_neuron_sum_system = partial(System, modules=(), packages=("neuron-sum", "torch"), fixed=True)

SYSTEMS: dict[str, System] = {
    "transformers-fp32": _transformers_system(partial(_transformers, dtype="float32"), dtype="fp32"),
    "transformers-bf16": _transformers_system(partial(_transformers, dtype="bfloat16"), dtype="bf16"),
    "ctranslate2-fp32": _ctranslate2_system(partial(_ctranslate2, quantization=None), dtype="fp32"),
    "ctranslate2-int8": _ctranslate2_system(partial(_ctranslate2, quantization="int8"), dtype="int8"),
    "onnxruntime-int8": _onnxruntime_system(partial(_onnxruntime, quantize=_quantize_dynamic)),
    "onnxruntime-int8-blocks": _onnxruntime_system(partial(_onnxruntime, quantize=_quantize_blocks)),
    "openvino-bf16": _openvino_system(partial(_openvino, int8=False), dtype="bf16"),
    "openvino-int8": _openvino_system(partial(_openvino, int8=True), dtype="int8"),
    "llama.cpp-bf16": _llama_cpp_system(partial(_llama_cpp, kind="BF16"), dtype="bf16"),
    "llama.cpp-q8_0": _llama_cpp_system(partial(_llama_cpp, kind="Q8_0"), dtype="int8"),
    "llama.cpp-q4_k_m": _llama_cpp_system(partial(_llama_cpp, kind="Q4_K_M"), dtype="int4"),
    "ours-fp32": _neuron_sum_system(partial(_neuron_sum, dtype="fp32"), dtype="fp32"),
    "ours-bf16": _neuron_sum_system(partial(_neuron_sum, dtype="bf16"), dtype="bf16"),
    "ours-int8": _neuron_sum_system(partial(_neuron_sum, dtype="int8"), dtype="int8"),
}


if __name__ == "__main__":
    main()
