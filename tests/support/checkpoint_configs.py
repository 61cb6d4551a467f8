"""config.json of the small checkpoints that tests damage."""

from micro_models import LLAMA_CONFIG

T5 = {"model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
LLAMA = {**LLAMA_CONFIG, "max_position_embeddings": 64}
BASES = {"t5": T5, "llama": LLAMA}
