"""Static graphs of T5 and Llama: fixed shapes, a KV cache, and adapter slots."""
