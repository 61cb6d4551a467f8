"""Adds the results of a receipt to the status page and to the step times of the calibration."""

import datetime
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from compile.preflight.device_times import DeviceTime, DeviceTimes
from compile.receipt.cells import CELLS
from compile.receipt.schema import ATTRIBUTION, FORMAT, Receipt, Result
from neuron_sum import files
from neuron_sum.errors import DataError, ResourceError

STATUS, TIMES = Path("docs", "status.md"), Path("compile", "preflight", "device_times.json")
LATENCY = "FLAN-T5-base latency"
"""The cell with the step times."""
KEY = ("instance", "sdk", "batch", "source_len", "target_len", "num_beams")
NOTHING_RAN = "**Nothing has run on a Neuron device or in an AWS account yet.**"
SOME_RAN = "**Nothing has run in an AWS account yet; [what ran on a Neuron device](#on-a-neuron-device) is listed.**"


@dataclass(frozen=True)
class Merged:
    """The result of a merge.

    Attributes:
        page: The status page.
        data: The file of step times.
        changed: The cells that changed.
        unchanged: The cells that keep their result: the same, a newer one, or passed on an instance of another type.
        not_measured: The cells that did not run; they keep their result.
        step_times: The number of step times that were added or replaced.
    """

    page: Path
    data: Path
    changed: list[str]
    unchanged: list[str]
    not_measured: list[str]
    step_times: int


def merge(file: Path, checkout: Path) -> Merged:
    """Reads a receipt, and changes the two files of a checkout.

    Args:
        file: The receipt.json.
        checkout: The folder of the checkout.

    Raises:
        DataError: If the file is not a receipt of this format, or was not made on a Neuron device in full size.
        ResourceError: If the folder is not a checkout.
    """
    receipt = read_receipt(file)
    page, data = checkout / STATUS, checkout / TIMES
    if missing := [path for path in (page, data) if not path.is_file()]:
        raise ResourceError(f"{missing[0]} does not exist", "use --checkout with the folder of a neuron-sum checkout")
    measured = [result for result in receipt.cells if result.measured]
    text, changed, unchanged = page.read_text(encoding="utf-8"), list[str](), list[str]()
    for result in measured:
        updated = _settled(text, result, receipt)
        (unchanged if updated == text else changed).append(result.name)
        text = updated
    if measured:
        text = text.replace(NOTHING_RAN, SOME_RAN)
    times, step_times = _times(data, receipt)
    files.write_text(page, text)
    files.write_json(data, times.model_dump(mode="json"))
    not_measured = [result.name for result in receipt.cells if not result.measured]
    return Merged(page, data, changed, unchanged, not_measured, step_times)


def read_receipt(file: Path) -> Receipt:
    """A receipt that can be merged.

    Raises:
        DataError: As `merge`.
    """
    hint = "use the receipt.json that `neuron-sum receipt` wrote"
    content = files.read_json(file, DataError, hint, nan=False)
    setting = content.get("setting")
    version = setting.get("format_version") if isinstance(setting, dict) else None
    if version is None:
        raise DataError(f"{file} is not a receipt: it has no setting.format_version", hint)
    if version != FORMAT or isinstance(version, bool):
        raise DataError(f"{file}: setting.format_version is {version!r:.40}; this version of neuron-sum reads {FORMAT}")
    try:
        receipt = Receipt.model_validate_json(json.dumps(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise DataError(f"{file} is damaged: {place}: {first['msg']}", hint) from error
    _check(file, receipt)
    return receipt


def _check(file: Path, receipt: Receipt) -> None:
    setting, names = receipt.setting, [result.name for result in receipt.cells]
    if setting.stand_ins:
        raise DataError(f"{file} was made with stand-ins, not on a Neuron device: nothing was merged")
    if setting.size != "full":
        raise DataError(f"{file} was made with --size {setting.size}: only full receipts are merged")
    if setting.neuron_devices < 1:
        raise DataError(f"{file}: setting.neuron_devices is 0, so that its results are not those of a Neuron device")
    if unknown := ", ".join(setting.unknown):
        raise DataError(
            f"{file}: unknown values in setting: {unknown}, so that its results cannot be attributed to a machine"
        )
    for name in ATTRIBUTION:
        if not re.fullmatch(r"[\w.+-]+", value := getattr(setting, name)):
            raise DataError(f"{file} is damaged: setting.{name} is {value!r:.40}")
    if wrong := [name for name in names if name not in CELLS]:
        raise DataError(f"{file} has an unknown cell {wrong[0]!r:.80}: it is of another version of neuron-sum")
    for result in receipt.cells:
        if not _is_date(result.date):
            raise DataError(f"{file}: the date of {result.name!r} is {result.date!r:.40}, not one such as 2026-11-29")
        if result.expected != (expected := CELLS[result.name].expected):
            raise DataError(
                f"{file}: the cell {result.name!r} expects {result.expected!r:.120}, here {expected!r}: it is of "
                "another version of neuron-sum"
            )
    if len(set(names)) < len(names):
        raise DataError(f"{file} has a cell twice: {next(name for name in names if names.count(name) > 1)}")


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _settled(text: str, result: Result, receipt: Receipt) -> str:
    """The status page with a result in its row.

    A newer result stays. If one of two instances failed, the result of the other counts: the instance may lack memory,
    or not be meant for the cell.
    """
    found = re.search(rf"^(\| {re.escape(result.name)} \|[^|\n]*\|)([^|\n]*)\|$", text, re.MULTILINE)
    if found is None:
        raise ResourceError(f"{STATUS} has no row {result.name!r}", "use a checkout of this version of neuron-sum")
    setting = receipt.setting
    if before := re.fullmatch(r" (\w+) on (\d{4}-\d\d-\d\d), ([\w.+-]+), .*", found[2]):
        state, date, instance = before.groups()
        failed = result.state == "failed"
        decided = instance != setting.instance and failed != (state == "failed")
        if failed if decided else date > result.date:
            return text
    cell = f" {result.state} on {result.date}, {setting.instance}, {setting.sdk} "
    return text[: found.start(2)] + cell + text[found.end(2) :]


def _times(data: Path, receipt: Receipt) -> tuple[DeviceTimes, int]:
    """The step times of the file and of the receipt, and the number of those that the receipt adds or replaces.

    A row of the receipt replaces one of the same instance, SDK and shape, unless that is newer.
    """
    try:
        before = DeviceTimes.model_validate_json(data.read_text(encoding="utf-8")).times
    except ValidationError as error:
        raise ResourceError(
            f"{data} is damaged: {error.errors()[0]['msg']}", f"restore it with git checkout {TIMES}"
        ) from error
    dates = {_key(time): time.date for time in before}
    measured = _measured(receipt)
    written = [time for time in measured if dates.get(_key(time), "") <= time.date and time not in before]
    replaced = {_key(time) for time in written}
    return DeviceTimes(times=(*(time for time in before if _key(time) not in replaced), *written)), len(written)


def _measured(receipt: Receipt) -> list[DeviceTime]:
    """The rows of the latency cell if it passed; otherwise its times contradict the floors that they calibrate."""
    for result in receipt.cells:
        if result.name == LATENCY and result.state == "passed":
            rows = result.data.get("rows")
            return [_time(row, result.date, receipt) for row in (rows if isinstance(rows, list) else [rows])]
    return []


def _time(row: Any, date: str, receipt: Receipt) -> DeviceTime:
    setting = receipt.setting
    try:
        time = DeviceTime(instance=str(setting.instance), sdk=str(setting.sdk), date=date, **row)
    except (TypeError, ValidationError) as error:
        raise DataError(f"the receipt is damaged: a row of {LATENCY!r} is {str(row)[:120]}") from error
    if time.step_ms <= 0 or time.floor_ms <= 0:
        raise DataError(
            f"the receipt is damaged: a row of {LATENCY!r} has a time that is not positive: {str(row)[:120]}"
        )
    if time.step_ms < time.floor_ms:
        raise DataError(f"the receipt is damaged: a row of {LATENCY!r} is faster than its floor: {str(row)[:120]}")
    return time


def _key(time: DeviceTime) -> tuple[Any, ...]:
    return tuple(getattr(time, name) for name in KEY)
