"""Numbers for the server's own /server/metrics: DJL reads them from the worker's output and keeps them for Prometheus.

A line is `[METRICS]name.Count:value|#label:value|time|kind`, with exactly one label (PrometheusAppender.java) and the
kind c(ounter), g(auge) or h(istogram, in Prometheus' default buckets of 5 ms to 10 s).
"""

import sys
import time
from collections import Counter
from collections.abc import Sequence

from serving.batching import Work


def of_batch(batch: Sequence[Work], seconds: float, waiting: int, shape: str) -> None:
    """What a batch tells: time, size, and what still waits.

    Args:
        batch: Its items.
        seconds: How long the graphs ran.
        waiting: Items in the queue.
        shape: The bucket that it was padded to.
    """
    lines = [
        _line("neuron_sum_batch_seconds", seconds, "bucket", shape, "h"),
        _line("neuron_sum_batch_items", len(batch), "bucket", shape, "c"),
        _line("neuron_sum_queue_items", waiting, "queue", "waiting", "g"),
    ]
    lines += [_line("neuron_sum_queue_seconds", work.started - work.arrived, "bucket", shape, "h") for work in batch]
    adapters = Counter(work.adapter or "base" for work in batch)
    lines += [_line("neuron_sum_adapter_items", n, "adapter", name, "c") for name, n in adapters.items()]
    _write(lines)


def of_request(status: int, seconds: float, input_tokens: int, output_tokens: int, truncated: int) -> None:
    """What a request tells."""
    _write(
        [
            _line("neuron_sum_requests", 1, "status", str(status), "c"),
            _line("neuron_sum_request_seconds", seconds, "status", str(status), "h"),
            _line("neuron_sum_tokens", input_tokens, "direction", "input", "c"),
            _line("neuron_sum_tokens", output_tokens, "direction", "output", "c"),
            _line("neuron_sum_truncated", truncated, "field", "inputs", "c"),
        ]
    )


def _line(name: str, value: float, label: str, label_value: str, kind: str) -> str:
    return f"[METRICS]{name}.Count:{value:.6g}|#{label}:{label_value}|{int(time.time() * 1000)}|{kind}"


def _write(lines: Sequence[str]) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()
