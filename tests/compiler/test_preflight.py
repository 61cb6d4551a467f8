"""The preflight: its report on the graphs of a recipe, the data, the prices and the installed compiler."""

import dataclasses
import json
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from configs import TINY, config_of

from compile.graphs.buckets import recipe_buckets
from compile.preflight import calibration, operators
from compile.preflight import command as preflight_command
from compile.preflight import report as preflighting
from compile.preflight.error_codes import Rejections
from compile.preflight.hlo import Account
from compile.preflight.lowering import Lowered, LoweringJob, lower
from compile.preflight.report import Report, preflight, recipe_options
from neuron_sum.artifact import AdapterSpec
from neuron_sum.errors import RecipeError
from neuron_sum.models.dimensions import base_config
from neuron_sum.platform import prices
from neuron_sum.platform.matrix import CORE_BANDWIDTH, CORE_FLOPS, CORES_PER_CHIP, GIB
from neuron_sum.recipes.loading import load_recipe, shipped_recipes
from neuron_sum.training.estimate import projection
from neuron_sum.training.estimate.projection import project_epoch, step_flops

CommandLine = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def shipped(xla_python: Path) -> dict[str, Lowered]:
    """Every graph of every shipped recipe, and the calibration's, each lowered once."""
    jobs: dict[str, LoweringJob] = {}

    def collect(wanted: Sequence[LoweringJob], keep: Path | None = None) -> Iterator[Lowered]:
        for job in wanted:
            for graph in job.graphs:
                jobs[key(job, graph.file)] = dataclasses.replace(job, graphs=(graph,))
                yield Lowered(graph, job.options.write, ONE, 1, 1, 1, 0.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preflighting, "lower", collect)
        patch.setattr(preflighting, "project_epoch", lambda *_: None)
        for name in shipped_recipes():
            preflight(load_recipe(name))
    return dict(zip(jobs, lower(list(jobs.values())), strict=True))


ONE = Account({"add": 1}, {"f32": 1}, (), {"f32": 1}, 1, 1, 1, 1)


def key(job: LoweringJob, file: str) -> str:
    return json.dumps([job.config.to_dict(), job.options.as_dict(), file], sort_keys=True, default=str)


@pytest.fixture
def lowered_before(shipped: dict[str, Lowered], monkeypatch: pytest.MonkeyPatch) -> None:
    def again(jobs: Sequence[LoweringJob], keep: Path | None = None) -> Iterator[Lowered]:
        yield from (shipped[key(job, graph.file)] for job in jobs for graph in job.graphs)

    monkeypatch.setattr(preflighting, "lower", again)


@pytest.mark.slow
def test_every_shipped_recipe_runs(lowered_before: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "step_flops", lambda *_: 10**12)  # counted below
    for name in shipped_recipes():
        report = preflight(load_recipe(name))
        assert report.faults == [], name
        assert len(report.graphs) == 4
        assert all(graph.rewriting is not None for graph in report.graphs if graph.lowered.graph.kind == "step"), name
        told = json.loads(json.dumps(report.as_dict()))
        for bucket in told["buckets"]:
            assert 0 < bucket["floor_s"] < bucket["projected_s"]
            assert 0 < bucket["floor_usd_per_1000"] < bucket["projected_usd_per_1000"]
        text = shown(report)
        assert "Nothing was measured on a device" in text
        assert ("is exported by optimum-neuron" in text) == (report.model_type == "llama")
        assert [each.published.tokens_per_s for each in report.calibrations] == [117.6, 108.18]
        assert all(0.19 < each.ratio < 0.3 for each in report.calibrations)


WEIGHTS = 247_577_856 * 4
"""Bytes of the weights of FLAN-T5-base."""


@pytest.fixture
def report(lowered_before: None, monkeypatch: pytest.MonkeyPatch) -> Report:
    """The preflight of flan-t5-base-lora."""
    monkeypatch.setattr(projection, "step_flops", lambda *_: 10**12)
    return preflight(load_recipe("flan-t5-base-lora"))


def test_the_rates_of_a_chip_are_the_published_ones() -> None:
    assert CORE_BANDWIDTH * CORES_PER_CHIP == 820 * GIB
    assert {dtype: rate * CORES_PER_CHIP for dtype, rate in CORE_FLOPS.items()} == {"fp32": 47.5e12, "bf16": 190e12}


@pytest.mark.slow
def test_floors_are_bytes_and_operations_over_published_rates(report: Report) -> None:
    encode, step = report.graphs[:2]
    assert (encode.bound, step.bound) == ("compute", "memory")
    assert step.floor_s == pytest.approx((step.account.read + step.account.written) / (410 * GIB))
    assert encode.floor_s == pytest.approx(encode.account.total_flops / 23.75e12)
    bucket = report.buckets[0]
    assert bucket.floor_s == pytest.approx(encode.floor_s + 128 * step.floor_s)
    assert bucket.usd_per_1000 == pytest.approx(1000 * bucket.floor_s * 0.99 / 3600)
    assert bucket.as_dict()["floor_usd_per_1000_all_cores"] == pytest.approx(bucket.usd_per_1000 / 2)
    ratio = min(each.ratio for each in report.calibrations)
    host_s = calibration.host_s(1, 1)
    assert bucket.as_dict()["projected_s"] == pytest.approx(bucket.floor_s / ratio + 128 * host_s)
    assert bucket.projected_tokens_per_s == pytest.approx(1 / (step.floor_s / ratio + host_s))
    assert WEIGHTS < bucket.memory < WEIGHTS * 1.3


@pytest.mark.slow
def test_the_calibration_is_whole_inference_in_fp32_with_four_beams(report: Report) -> None:
    for row in report.calibrations:
        encode, step = row.encode, row.step
        assert (step.lowered.graph.num_beams, step.lowered.graph.batch, step.lowered.graph.target_len) == (4, 1, 128)
        assert encode.account.flops.keys() | step.account.flops.keys() == {"f32"}
        head = 32128 * row.published.dims["d_model"] * 4
        step_s = (head + (step.account.moved - head) / 8) / (410 * GIB)
        encode_s = max(encode.account.moved / (410 * GIB), encode.account.total_flops / 95e12)
        assert row.floor_s == pytest.approx(encode_s + 83 * step_s)
        published_s = 84 / row.published.tokens_per_s
        assert row.ratio == pytest.approx(row.floor_s / (published_s - 83 * 0.00011))
        assert row.as_dict()["floor_over_published"] == row.ratio


def test_the_time_of_the_host_is_a_term_per_step() -> None:
    assert calibration.host_s(8, 4) == pytest.approx(0.09e-3)
    assert calibration.host_s(8, 4, 3) == pytest.approx(0.13e-3)
    assert calibration.host_s(2, 4) == calibration.host_s(4, 2) == pytest.approx(0.11e-3), "not measured: the largest"
    assert calibration.host_s(32, 4) == pytest.approx(4 * 0.11e-3), "more rows than were measured"


@pytest.mark.slow
def test_a_graph_that_cannot_run_is_an_error(report: Report) -> None:
    encode, step = report.graphs[:2]
    bucket = report.buckets[0]
    wide = Rejections(errors=("NCC_ESPP004: f64 (convert.1)", "NCC_EMOD025: a result (nonzero.2)"))
    broken = dataclasses.replace(encode, lowered=dataclasses.replace(encode.lowered, rejections=wide))
    assert faults(report, graphs=(broken, *report.graphs[1:])) == [f"{encode.name}: {line}" for line in wide.errors]
    lossy = Rejections(warnings=("NCC_EVRF035: a matrix product (dot.3)",))
    warned = dataclasses.replace(encode, lowered=dataclasses.replace(encode.lowered, rejections=lossy))
    assert f"{encode.name}: {lossy.warnings[0]}" in dataclasses.replace(report, graphs=(warned,)).warnings
    large = dataclasses.replace(step, lowered=dataclasses.replace(step.lowered, weights=18 * 10**9))
    over = dataclasses.replace(report, buckets=(dataclasses.replace(bucket, step=large),))
    assert "GB of memory with one copy of the weights, a core has 17.2 (NCC_EOOM001" in over.faults[0]


@pytest.mark.slow
def test_loaded_graphs_share_the_weights(report: Report) -> None:
    steps = [graph for graph in report.graphs if graph.lowered.graph.kind == "step"]
    assert report.weights == steps[0].lowered.weights >= WEIGHTS
    assert steps[0].lowered.state < report.state <= sum(step.lowered.state for step in steps)
    assert report.warnings == [] and "memory fits with every graph loaded" in shown(report)
    large = [dataclasses.replace(g, lowered=dataclasses.replace(g.lowered, weights=17 * 10**9)) for g in report.graphs]
    many = dataclasses.replace(report, graphs=tuple(large))
    assert many.faults == [] and many.loaded_memory > 17.2e9
    assert many.warnings[0].startswith("all graphs together take up to ")
    assert "warning: all graphs together" in shown(many) and "fits with every graph" not in shown(many)


@pytest.mark.slow
def test_an_unknown_list_of_operators_rejects_nothing(report: Report) -> None:
    short = dataclasses.replace(report, compiler_operators=frozenset({"dot"}))
    assert short.faults == [] and "add" in (short.unlisted_by_compiler or {})
    whole = dataclasses.replace(report, compiler_operators=frozenset(operators.PUBLISHED.values()))
    assert whole.unlisted_by_compiler == report.unlisted
    told = shown(report)
    assert 'limit of dynamic-update-slice in the published list: "Supports only for constant index"' in told
    assert "\ns64: token ids" in told
    assert "compile.neuron.cache_write=scatter or where" in told and "neuronx-cc is not on PATH" in told


def shown(report: Report) -> str:
    """The text printed next to the tables."""
    return "\n".join(line for line in preflight_command._shown(report) if isinstance(line, str))


def faults(report: Report, **changes: Any) -> list[str]:
    return dataclasses.replace(report, **changes).faults


@pytest.mark.slow
def test_the_command_runs_from_a_plain_checkout(xla_python: Path, neuron_sum: CommandLine, tmp_path: Path) -> None:
    made = neuron_sum(
        "preflight",
        "tiny",
        "compile.batch_sizes=[2]",
        "--set",
        "compile.dtype=bf16",
        "--picture",
        "floors.svg",
        "--hlo",
        "texts",
        "--json",
    )
    assert made.returncode == 0, made.stderr
    told = json.loads(made.stdout)
    assert (told["recipe"], told["dtype"], told["faults"]) == ("tiny", "bf16", [])
    assert prices.READ in told["price"]["source"]
    assert told["training"]["rows_are"] == "counted from the bundled sample (dynamic)"
    assert "lowering graphs 7/7" in made.stderr
    assert "</svg>" in (tmp_path / "floors.svg").read_text()
    assert len(list((tmp_path / "texts").glob("*.hlo"))) == 7
    wrong = neuron_sum("preflight", "tiny", "--picture", "floors.doc")
    assert (wrong.returncode, wrong.stdout) == (3, "")
    assert re.search(r"hint: .*\.png or \.svg", wrong.stderr)


def test_an_invalid_picture_path_is_rejected_before_lowering(neuron_sum: CommandLine, tmp_path: Path) -> None:
    nowhere = neuron_sum("preflight", "tiny", "--picture", "none/floors.png")
    assert (nowhere.returncode, nowhere.stdout) == (6, "")
    assert "--picture none/floors.png: the folder none does not exist" in nowhere.stderr
    assert "lowering" not in nowhere.stderr and "hint: run `mkdir -p none`" in nowhere.stderr
    (tmp_path / "folder.png").mkdir()
    assert neuron_sum("preflight", "tiny", "--picture", "folder.png").returncode == 6


def test_a_valid_operator_list_of_the_compiler_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert operators.compiler_opcodes() is None
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    fake = tmp_path / "neuronx-cc"
    lines, page = "\n".join(operators.PUBLISHED), ", ".join(operators.PUBLISHED)
    table = "\n".join(
        f"| {name} | {operators.LIMITS.get(operators.opcode(name), '')} |" for name in operators.PUBLISHED
    )
    every = set(operators.PUBLISHED.values())
    for said in (lines, page, table, lines.lower(), lines.upper()):
        fake.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
        fake.chmod(0o755)
        found = operators.compiler_opcodes()
        assert found is not None and every <= found, said
    fake.write_text("#!/bin/sh\necho usage: neuronx-cc\n")
    assert operators.compiler_opcodes() is None


def test_operator_names_are_mapped_to_opcodes() -> None:
    named = {
        "DynamicUpdateSlice": "dynamic-update-slice",
        "Mul": "multiply",
        "Exp": "exponential",
        "Ge": "compare",
        "GetTupleElement": "get-tuple-element",
        "ConvertElementType": "convert",
        "ReduceWindow": "reduce-window",
        "AllGather": "all-gather",
        "Logistic": "logistic",
        "reduce-window": "reduce-window",
    }
    assert {name: operators.opcode(name) for name in named} == named
    assert operators.LIMITS.keys() <= set(operators.PUBLISHED.values())


def test_int8_is_rejected_and_buckets_come_from_the_recipe() -> None:
    recipe = load_recipe(
        "flan-t5-base-lora",
        [
            "compile.num_beams=[4,1]",
            "compile.source_lens=[512,256]",
            "compile.adapters.slots=3",
            "compile.kv_dtype=bf16",
        ],
    )
    buckets, beams = recipe_buckets(recipe)
    assert beams == (1, 4)
    assert [str(bucket) for bucket in buckets] == ["1x256x128", "1x512x128", "8x256x128", "8x512x128"]
    options = recipe_options(recipe, "t5", buckets)
    assert options.adapters == AdapterSpec(rank=32, slots=4, target_modules=("q", "v"))
    assert (options.dtype, options.kv_dtype, options.source_len) == ("fp32", "bf16", 512)
    with pytest.raises(RecipeError, match="int8 is for --target cpu"):
        recipe_options(load_recipe("tiny", ["compile.dtype=int8"]), "t5", buckets)
    soft = load_recipe("flan-t5-base-prompt-tuning")
    assert recipe_options(soft, "t5", buckets).soft_prompt_tokens == 100


def test_a_missing_run_has_the_dimensions_of_its_recipe() -> None:
    there, expected = base_config(load_recipe("tiny-lora").model), base_config(load_recipe("tiny-base").model)
    assert there.to_dict() == expected.to_dict()
    assert there.vocab_size == 1200


# Training.


def test_operations_of_a_training_step_are_counted_without_weights() -> None:
    overrides = ["train.per_device_train_batch_size=2"]
    full, lora = load_recipe("tiny", overrides), load_recipe("tiny", [*overrides, "method=lora"])
    config = base_config(full.model)
    shape = projection.Shape(64, 32)
    whole = step_flops(full, config, shape)
    # One forward product means two backward; each weight has about 2 operations per position, attention some more.
    assert step_flops(full, config, projection.Shape(64, 32)) == whole
    assert step_flops(lora, config, shape) < whole
    checkpointed = load_recipe("tiny", [*overrides, "train.gradient_checkpointing=true"])
    assert whole < step_flops(checkpointed, config, shape) < 1.5 * whole
    twice = load_recipe("tiny", ["train.per_device_train_batch_size=4"])
    assert step_flops(twice, config, shape) == 2 * whole
    llama = config_of(TINY["llama"])
    assert step_flops(full, llama, projection.Shape(96, 0)) > 0


def test_an_epoch_states_its_rows_and_assumptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projection, "step_flops", lambda *_: 4 * 10**12)
    lora = load_recipe("trn1-flan-t5-base-lora")
    epoch = project_epoch(lora, base_config(lora.model), examples_per_row=2.2)
    assert (epoch.rows, epoch.dtype, tuple(epoch.shape)) == (5664, "bf16", (512, 112))
    assert epoch.rows_are == "12,460 published examples at 2.2 per row"
    assert epoch.is_floor
    assert epoch.peak_s == pytest.approx(5664 * 2e12 / 190e12)
    assert epoch.peak_usd == pytest.approx(5664 * 2e12 / 190e12 * 1.54 / 3600)
    assert epoch.projected_s == pytest.approx((epoch.peak_s or 0) / projection.ASSUMED_SHARE)
    # The number per packed row is unknown: only the cost of 1,000 rows.
    unasked = project_epoch(lora, base_config(lora.model))
    assert (unasked.rows, unasked.peak_s, unasked.projected_usd) == (None, None, None)
    assert unasked.peak_usd_per_1000_rows == pytest.approx(1000 * 2e12 / 190e12 * 1.54 / 3600)
    assert "--examples-per-row" in unasked.rows_are
    # Rows of lengths other than the longest: the cost for the longest length is not a floor.
    course = load_recipe("flan-t5-base-lora")
    dynamic = project_epoch(course, base_config(course.model))
    assert (dynamic.rows, dynamic.rows_are, dynamic.is_floor) == (12_460, "12,460 published examples", False)
    chosen = load_recipe("trn1-flan-t5-base-lora", ["train.shapes.sizes=null"])
    assert not project_epoch(chosen, base_config(chosen.model), 2.2).is_floor
    with pytest.raises(RecipeError, match=r"requires train\.shapes\.plan=packed"):
        project_epoch(course, base_config(course.model), 2.2)
    unknown = load_recipe("mts-dialog")
    nothing = project_epoch(unknown, base_config(unknown.model))
    assert (nothing.rows, nothing.peak_usd) == (None, None)
    assert nothing.peak_usd_per_1000_rows > 0
    tiny = load_recipe("tiny", ["train.shapes.plan=packed"])
    counted = project_epoch(tiny, base_config(tiny.model))
    assert counted.rows is not None and counted.rows < 400
    assert counted.rows_are == "counted from the bundled sample (packed)"
    assert counted.is_floor
