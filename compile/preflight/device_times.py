"""Step times that receipts measured on Neuron devices, for the projections; device_times.json has one row for each.

`neuron-sum receipt --merge` writes the file.
"""

from functools import cache
from pathlib import Path

from neuron_sum.recipes.schema import Section

FILE = Path(__file__).with_name("device_times.json")


class DeviceTime(Section):
    """One measurement of a T5 with the dimensions of FLAN-T5-base in fp32."""

    instance: str
    sdk: str
    date: str
    batch: int
    source_len: int
    target_len: int
    num_beams: int
    encode_ms: float
    step_ms: float
    floor_ms: float
    """The bytes that a step reads, at the bandwidth of a core's memory."""


class DeviceTimes(Section):
    """The content of the file."""

    times: tuple[DeviceTime, ...]


@cache
def device_times() -> tuple[DeviceTime, ...]:
    """All measurements."""
    return DeviceTimes.model_validate_json(FILE.read_text(encoding="utf-8")).times


def measured_ratio() -> float | None:
    """The smallest ratio of the floor of a step to its measured time, at most 1; None without measurements."""
    return min((min(1.0, time.floor_ms / time.step_ms) for time in device_times()), default=None)
