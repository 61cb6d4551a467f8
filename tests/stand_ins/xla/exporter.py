"""Count a decoder step as optimum-neuron exports it: python exporter.py BATCH SEQUENCE BEAMS FOLDER CONFIG

Upstream's T5DecoderWrapper is lowered and counted by the same code as the graphs of this package, with the packages of
tests/support/neuron_packages.py on PYTHONPATH. CONFIG is a T5's config.json. Prints one JSON line for each of BEAMS
(separated by commas), with the bytes of the weights that it reads.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch_neuronx  # noqa: F401  (the stand-in, before others look for it)


def main() -> None:
    from optimum.exporters.neuron.model_wrappers import T5DecoderWrapper
    from transformers import T5Config, T5ForConditionalGeneration

    from compile.preflight.hlo import account, bytes_read, parse
    from compile.preflight.xla_process import hlo_text, insert_placeholders, placeholder

    batch, length, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[4]
    config = T5Config(**json.loads(Path(sys.argv[5]).read_text()))
    config._attn_implementation, config.use_cache, config.return_dict = "eager", True, True
    for beams in map(int, sys.argv[3].split(",")):
        rows = batch * beams
        with torch.device("meta"):
            model = T5ForConditionalGeneration(config).eval()
            wrapper = T5DecoderWrapper(model, batch, length, beams, device="xla").eval()
        insert_placeholders(wrapper)
        ids = torch.zeros(rows, 1, dtype=torch.int64)
        mask = torch.ones(rows, length, dtype=torch.int64)
        hidden = torch.zeros(rows, length, config.d_model)
        order, scores = torch.zeros(rows, dtype=torch.int64), torch.zeros(rows)
        with torch.no_grad():
            outputs = wrapper(*map(placeholder, (ids, mask, hidden, mask, order, scores)))
        text = hlo_text(outputs)
        (Path(folder) / f"optimum-neuron-k{beams}.hlo").write_text(text)
        graph = parse(text)
        read = bytes_read(graph)
        matrices = [each for each in graph.parameters if each.array.dtype == "f32" and len(each.array.dims) == 2]
        weights = sum(each.array.nbytes for each in matrices if read[each.name] == each.array.nbytes)
        print(json.dumps({**asdict(account(text)), "weights_read": weights}), flush=True)


if __name__ == "__main__":
    main()
