"""Static graphs of T5, Llama and its relatives: fixed shapes, a KV cache, and adapter slots."""
