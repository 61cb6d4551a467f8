"""Lowering: HLO counted by the rules, graphs for ahead-of-time compilers, and the limits of a decoder step."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from configs import BEAMS, LAYERS, TINY, config_of
from in_process import neuron_sum
from micro_models import ROOT

from benchmarks import preflight as benchmark
from compile.graphs.buckets import bucket_graphs
from compile.graphs.selection import candidates
from compile.preflight import hlo, lowering
from compile.preflight.error_codes import Rejections, rejections
from compile.preflight.hlo import account
from compile.preflight.lowering import ENVIRONMENT, Lowered, LoweringJob, LoweringOptions, lower
from neuron_sum.artifact import AdapterSpec, Bucket, GraphFile
from neuron_sum.errors import CompileError, PlatformError
from neuron_sum.models.dimensions import PUBLISHED

BUCKET, STEPS = Bucket(batch=2, source_len=16, target_len=8), 3
PLAIN = LoweringOptions("fp32", "fp32", BUCKET.source_len, BUCKET.target_len)
VARIANTS = {
    "plain": PLAIN,
    "where": dataclasses.replace(PLAIN, write="where"),
    "scatter": dataclasses.replace(PLAIN, write="scatter"),
    "bf16": dataclasses.replace(PLAIN, dtype="bf16", kv_dtype="bf16"),
    "narrow cache": dataclasses.replace(PLAIN, kv_dtype="bf16"),
    "soft prompt": dataclasses.replace(PLAIN, soft_prompt_tokens=4),
}
TARGETS = {"t5": ("q", "v"), "llama": ("q_proj", "v_proj")}


def several_steps() -> GraphFile:
    return bucket_graphs(BUCKET, (), greedy_steps=STEPS)[-1]


@pytest.fixture(scope="module")
def tiny(xla_python: Path) -> dict[tuple[str, str, str], Lowered]:
    """Every variant of both families, by family, variant and encode, greedy, beams or several greedy steps."""
    jobs, keys = [], []
    for family, values in TINY.items():
        slots = AdapterSpec(rank=2, slots=3, target_modules=TARGETS[family])
        for name, options in {**VARIANTS, "slots": dataclasses.replace(PLAIN, adapters=slots)}.items():
            jobs.append(LoweringJob(config_of(values), options, tuple(bucket_graphs(BUCKET, (1, BEAMS)))))
            keys += [(family, name, kind) for kind in ("encode", "greedy", "beams")]
        for name in ("plain", "where"):
            jobs.append(LoweringJob(config_of(values), VARIANTS[name], (several_steps(),)))
            keys.append((family, name, "several"))
    return dict(zip(keys, lower(jobs), strict=True))


@pytest.fixture(scope="module")
def controls(xla_python: Path) -> dict[str, Any]:
    made = subprocess.run(
        [str(xla_python), str(ROOT / "tests" / "stand_ins" / "xla" / "controls.py")],
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    return dict(json.loads(made.stdout))


# Counting on hand-written HLO. Sizes in bytes: cache 2x6x4 f32 = 192, one column 32, table 10x4 f32 = 160.

HEAD = "HloModule m\n\n"
WRITE = """%write (c: f32[2,6,4], u: f32[2,1,4], i: s32[]) -> f32[2,6,4] {
  %c = f32[2,6,4]{2,1,0} parameter(0)
  %u = f32[2,1,4]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %d = f32[2,6,4]{2,1,0} dynamic-update-slice(%c, %u, s32[] %z, s32[] %i, s32[] %z)
}

"""


def entry(*lines: str) -> str:
    return HEAD + WRITE + "ENTRY %main (all: f32[]) -> (f32[]) {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


CACHE = "%cache = f32[2,6,4]{2,1,0} parameter(0)"
COLUMN = "%column = f32[2,1,4]{2,1,0} parameter(1)"
AT = "%at = s32[] parameter(2)"
CALL = "%new = f32[2,6,4]{2,1,0} call(f32[2,6,4]{2,1,0} %cache, f32[2,1,4]{2,1,0} %column, s32[] %at), to_apply=%write"
CASES: dict[str, tuple[tuple[str, ...], int, int, int]] = {
    "read whole, written whole": (
        (CACHE, "ROOT %n = f32[2,6,4]{2,1,0} negate(f32[2,6,4]{2,1,0} %cache)"), 192, 192, 0,
    ),
    "read twice counts once": (
        (CACHE, "%n = f32[2,6,4] negate(%cache)", "ROOT %a = f32[2,6,4] add(%n, %cache)"), 192, 192, 0,
    ),
    "a column in place, the cache not read": (
        (CACHE, COLUMN, AT, CALL, "ROOT %t = (f32[2,6,4]{2,1,0}) tuple(f32[2,6,4]{2,1,0} %new)"), 32 + 4, 32, 1,
    ),
    "a column in place, the cache read": (
        (CACHE, COLUMN, AT, CALL, "%n = f32[2,6,4] negate(%new)", "ROOT %t = (f32[2,6,4], f32[2,6,4]) tuple(%new, %n)"),
        192 + 32 + 4, 32 + 192, 1,
    ),
    "a slice of a slice": (
        (
            CACHE, "%row = f32[1,6,4] slice(%cache), slice={[0:1], [0:6], [0:4]}",
            "%half = f32[1,3,4] slice(%row), slice={[0:1], [0:3], [0:4]}", "ROOT %n = f32[1,3,4] negate(%half)",
        ), 48, 48, 0,
    ),
    "a slice that is also read whole": (
        (
            CACHE, "%row = f32[1,6,4] slice(%cache), slice={[0:1], [0:6], [0:4]}", "%n = f32[1,6,4] negate(%row)",
            "%half = f32[1,3,4] slice(%row), slice={[0:1], [0:3], [0:4]}",
            "ROOT %t = (f32[1,6,4], f32[1,3,4]) tuple(%n, %half)",
        ), 96, 96 + 48, 0,
    ),
    "two outputs cannot be one buffer": (
        (CACHE, COLUMN, AT, CALL, "ROOT %t = (f32[2,6,4], f32[2,6,4]) tuple(%new, %new)"), 32 + 4, 32 + 192, 1,
    ),
    "passed through": (
        (CACHE, "ROOT %t = (f32[2,6,4]{2,1,0}) tuple(f32[2,6,4]{2,1,0} %cache)"), 0, 0, 0,
    ),
    "another form is not passed through": (
        (CACHE, "%r = f32[12,4] reshape(%cache)", "ROOT %t = (f32[12,4]) tuple(%r)"), 0, 192, 0,
    ),
    "shifted, as upstream's": (
        (CACHE, COLUMN, "%c = f32[2,7,4] concatenate(%cache, %column), dimensions={1}",
         "ROOT %s = f32[2,6,4] slice(%c), slice={[0:2], [1:7], [0:4]}"), 192 + 32, 192, 0,
    ),
    "a beam reorder reads and writes": (
        (CACHE, "%i = s32[2] parameter(1)", "ROOT %g = f32[2,6,4] gather(%cache, %i), offset_dims={1,2}"),
        192 + 8, 192, 0,
    ),
    "a table's rows": (
        ("%table = f32[10,4]{1,0} parameter(0)", "%i = s32[3]{0} parameter(1)",
         "ROOT %g = f32[3,4]{1,0} gather(f32[10,4]{1,0} %table, s32[3]{0} %i), offset_dims={1}"), 48 + 12, 48, 0,
    ),
    "a table that is also multiplied": (
        ("%table = f32[10,4]{1,0} parameter(0)", "%i = s32[3]{0} parameter(1)",
         "%g = f32[3,4]{1,0} gather(f32[10,4]{1,0} %table, s32[3]{0} %i), offset_dims={1}",
         "ROOT %d = f32[3,10]{1,0} dot(f32[3,4]{1,0} %g, f32[10,4]{1,0} %table), lhs_contracting_dims={1}, "
         "rhs_contracting_dims={1}"), 160 + 12, 120, 0,
    ),
    "nobody reads it": (("%a = f32[10]{0} parameter(0)", "ROOT %c = f32[] constant(1)"), 0, 4, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bytes_are_counted_by_the_rules(case: str) -> None:
    lines, read, written, in_place = CASES[case]
    found = account(entry(*lines))
    assert (found.read, found.written, found.in_place) == (read, written, in_place)


def test_products_types_and_dynamic_dimensions_are_counted() -> None:
    found = account(
        entry(
            "%a = bf16[2,3,5]{2,1,0} parameter(0)",
            "%b = bf16[2,5,7]{2,1,0} parameter(1)",
            "%d = bf16[2,3,7]{2,1,0} dot(bf16[2,3,5]{2,1,0} %a, bf16[2,5,7]{2,1,0} %b), lhs_batch_dims={0}, "
            "lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}",
            "%w = f64[2,3,7]{2,1,0} convert(bf16[2,3,7]{2,1,0} %d)",
            "ROOT %s = f64[<=2,3,7]{2,1,0} set-dimension-size(f64[2,3,7]{2,1,0} %w, s32[] %a), dimensions={0}",
        )
    )
    assert found.flops == {"bf16": 2 * 2 * 3 * 7 * 5}
    assert found.dtypes["f64"] == 2
    assert found.dynamic == ("s",)
    assert found.operators["dot"] == 1


def test_activations_live_until_their_last_use() -> None:
    chain = [f"%n{i + 1} = f32[8] negate(%n{i})" for i in range(5)]
    found = account(entry("%n0 = f32[8] parameter(0)", *chain, "ROOT %t = (f32[8]) tuple(%n5)"))
    assert found.activations == 2 * 32
    both = account(entry("%n0 = f32[8] parameter(0)", *chain, "ROOT %a = f32[8] add(%n1, %n5)"))
    assert both.activations == 3 * 32


def test_invalid_hlo_and_unknown_types_are_errors() -> None:
    with pytest.raises(ValueError, match="no entry computation"):
        account("nothing")
    with pytest.raises(ValueError, match="type f5 is not known"):
        hlo.parse(entry("ROOT %a = f5[2] parameter(0)"))


# The graphs of this package, lowered.


def test_no_graph_has_a_dynamic_dimension_or_a_wide_float(tiny: dict[tuple[str, str, str], Lowered]) -> None:
    for key, lowered in tiny.items():
        assert lowered.account.dynamic == (), key
        assert "f64" not in lowered.account.dtypes, key
        assert lowered.account.total_flops > 0, key
        # Operations that a compiler without narrowing of s64 would reject: docs/compile.md.
        assert lowered.account.flops.keys() <= {"f32", "bf16"}, key
        assert ("scatter" in lowered.account.operators) == (key[1] == "scatter" and key[2] != "encode"), key


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("kind", ["greedy", "beams"])
def test_a_step_writes_a_column_in_place_and_where_rewrites(
    tiny: dict[tuple[str, str, str], Lowered], family: str, kind: str
) -> None:
    beams = BEAMS if kind == "beams" else 1
    heads = 2
    column = BUCKET.batch * heads * beams * 8 * 4
    listed = candidates(beams)
    logits = BUCKET.batch * beams * (64 * 4 + listed * 4 + listed * 8 + 4)  # and the candidates with their sum
    plain, where = tiny[family, "plain", kind].account, tiny[family, "where", kind].account
    assert plain.in_place == 2 * LAYERS
    assert plain.written == logits + 2 * LAYERS * column
    assert where.in_place == 0
    assert where.written == logits + 2 * LAYERS * column * BUCKET.target_len
    assert "dynamic-update-slice" not in where.operators
    assert tiny[family, "scatter", kind].account.written == plain.written
    narrow = tiny[family, "narrow cache", kind].account
    assert narrow.written == logits + LAYERS * column
    half = tiny[family, "bf16", kind].account
    assert set(half.flops) == {"bf16"} and sum(half.flops.values()) == sum(plain.flops.values())
    assert half.read < 0.6 * plain.read


@pytest.mark.parametrize("family", TINY)
def test_several_steps_write_a_column_each_and_read_everything_again(
    tiny: dict[tuple[str, str, str], Lowered], family: str
) -> None:
    one, several = tiny[family, "plain", "greedy"].account, tiny[family, "plain", "several"].account
    column, tokens = BUCKET.batch * 2 * 8 * 4, BUCKET.batch * (8 + 4)
    assert several.written == STEPS * (2 * LAYERS * column + tokens)
    assert several.in_place == one.in_place == 2 * LAYERS
    assert tiny[family, "where", "several"].account.in_place == 0
    assert several.total_flops == STEPS * one.total_flops
    assert STEPS * one.read <= several.read < 1.02 * STEPS * one.read, "and more rows of tables"
    assert several.operators.keys() <= one.operators.keys() | {"minimum"}
    assert not tiny[family, "plain", "several"].rejections.errors


@pytest.mark.parametrize("family", TINY)
def test_only_the_slots_of_a_batch_are_read(tiny: dict[tuple[str, str, str], Lowered], family: str) -> None:
    plain, slots = tiny[family, "plain", "greedy"], tiny[family, "slots", "greedy"]
    added = slots.account.read - plain.account.read
    stacks = slots.weights - plain.weights  # three slots, of which two examples read two
    assert 0 < added <= stacks
    assert (
        tiny[family, "soft prompt", "encode"].account.total_flops > tiny[family, "plain", "encode"].account.total_flops
    )


def test_memory_is_the_size_of_the_tensors(tiny: dict[tuple[str, str, str], Lowered]) -> None:
    step = tiny["t5", "plain", "beams"]
    caches = 2 * LAYERS * BUCKET.batch * 2 * 8 * 4 * (BUCKET.source_len + BEAMS * BUCKET.target_len)
    bias = BUCKET.batch * BUCKET.source_len * 4
    assert step.state == caches + bias
    # Without adapters the slots of a batch are not in the graph.
    unused = BUCKET.batch * 8
    assert step.account.parameters - (step.inputs - unused) < step.weights


@pytest.mark.parametrize("room", [1, 2])
def test_a_graph_traced_for_a_device_has_the_same_counts(xla_python: Path, room: int) -> None:
    """Also if the buffers that all graphs share have more rows and a longer source than the bucket."""
    slots = AdapterSpec(rank=2, slots=3, target_modules=TARGETS["t5"])
    variants = [
        dataclasses.replace(each, source_len=room * BUCKET.source_len)
        for each in (*VARIANTS.values(), dataclasses.replace(PLAIN, adapters=slots))
    ]
    graphs = tuple(bucket_graphs(BUCKET, (1, BEAMS), greedy_steps=STEPS))
    asked = lowering.request([LoweringJob(config_of(TINY["t5"]), each, graphs) for each in variants])
    asked["rows"] = rows = room * BUCKET.batch
    made = subprocess.run(
        [str(xla_python), str(ROOT / "tests" / "stand_ins" / "xla" / "device_graphs.py")],
        input=json.dumps(asked),
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-3000:]
    pairs = [json.loads(line) for line in made.stdout.splitlines()]
    assert len(pairs) == len(variants) * len(graphs)
    for index, (ours, traced) in enumerate(pairs):
        options, graph = variants[index // len(graphs)], graphs[index % len(graphs)]
        names = {"flops", "dynamic"}
        if graph.kind == "encode":
            longest, source = (n + options.soft_prompt_tokens for n in (options.source_len, BUCKET.source_len))
            written = ours["written"] * longest // source
            if options.write == "where":  # it reads and writes all rows
                assert traced["written"] == written * room
                assert traced["read"] == ours["read"] + written * room + 8 * BUCKET.batch
            else:
                assert (traced["written"], traced["in_place"]) == (written, 1 + 2 * LAYERS)
                assert traced["read"] == ours["read"] + 8 * BUCKET.batch
        elif room == 1:
            names = {*ours}
        elif options.write != "where":
            names |= {"read", "written", "in_place"}
            assert traced["parameters"] > ours["parameters"], f"buffers of {rows} rows"
        assert {name: traced[name] for name in names} == {name: ours[name] for name in names}, graph.file


def test_negative_controls_are_detected(controls: dict[str, Any]) -> None:
    found = {name: account(text) for name, text in controls["texts"].items()}
    cache, column = 192, 32
    assert "f64" in found["f64"].dtypes
    assert found["dynamic"].dynamic
    assert (found["rewritten"].written, found["rewritten"].in_place) == (cache, 0)
    assert (found["in_place"].written, found["in_place"].in_place) == (column, 1)
    assert (found["scattered"].written, found["scattered"].in_place) == (column, 1)
    assert all(not each.dynamic for name, each in found.items() if name != "dynamic")


def test_error_codes_are_detected_in_lowered_graphs(controls: dict[str, Any]) -> None:
    for code, text in controls["rejected"].items():
        found = rejections(hlo.parse(text))
        kind = found.warnings if code in ("NCC_EVRF029", "NCC_EVRF035", "NCC_EVRF062") else found.errors
        assert any(line.startswith(code) for line in kind), (code, found)
    for name, text in controls["accepted"].items():
        assert rejections(hlo.parse(text)) == Rejections(), name


def test_the_in_place_write_equals_the_plain_write(controls: dict[str, Any]) -> None:
    assert controls["written"]


@pytest.mark.slow
def test_bytes_compared_with_the_optimum_neuron_exporter(xla_python: Path, tmp_path: Path) -> None:
    rows, theirs = benchmark.compare(PUBLISHED["google/flan-t5-base"], tmp_path)
    assert len(rows) == len(benchmark.BARS)
    assert {(row.dtype, row.lowered.write, row.beams) for row in rows} == set(benchmark.BARS)
    for row in rows:
        assert row.missed == [], (row.dtype, row.lowered.write, row.beams)
    assert [round(theirs[beams].moved / 1e6, 1) for beams in (1, 4)] == [608.3, 1098.6]
    # The limits can be missed: half the bytes allowed, and a write that is not excused.
    first = rows[0]
    half = dataclasses.replace(first.upstream, read=first.upstream.read // 2, written=first.upstream.written // 2)
    assert any("of the bytes" in why for why in dataclasses.replace(first, upstream=half).missed)
    as_where = dataclasses.replace(first, lowered=dataclasses.replace(first.lowered, write="where"))
    assert as_where.missed == ["operators: dynamic-update-slice"]


def test_a_failed_lowering_keeps_its_log(xla_python: Path) -> None:
    wrong = dataclasses.replace(PLAIN, dtype="fp16")
    with pytest.raises(CompileError, match="encode 2x16 did not lower: KeyError") as error:
        list(lower([LoweringJob(config_of(TINY["t5"]), wrong, tuple(bucket_graphs(BUCKET, ())))]))
    kept = str(error.value.hint).removeprefix("whole log: ")
    assert "Traceback" in Path(kept).read_text()


def test_without_torch_xla_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(lowering.PYTHON, raising=False)
    monkeypatch.setattr(lowering, "find_spec", lambda name: None)
    monkeypatch.setattr(lowering.sys, "prefix", str(tmp_path / ".venv"))
    with pytest.raises(PlatformError) as error:
        lowering.xla_python()
    assert "make .venv-xla/.installed" in str(error.value.hint)
    beside = tmp_path / ".venv-xla" / "bin" / "python"
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert lowering.xla_python() == beside
    monkeypatch.setenv(lowering.PYTHON, str(tmp_path / "none"))
    with pytest.raises(PlatformError, match="no such file"):
        lowering.xla_python()


def test_a_python_without_torch_xla_is_reported_before_the_model_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(lowering, "find_spec", lambda name: None)
    monkeypatch.setattr("compile.preflight.report.preflight", lambda *_, **__: pytest.fail("the model was read"))
    plain, broken = tmp_path / "python", tmp_path / "broken"
    plain.write_text("#!/bin/sh\nexit 1\n")
    plain.chmod(0o755)
    broken.touch()
    for path, message in ((plain, "does not have torch_xla"), (broken, "cannot be run"), (tmp_path, "cannot be run")):
        monkeypatch.setenv(lowering.PYTHON, str(path))
        made = neuron_sum("preflight", "tiny")
        assert made.exit_code == PlatformError.exit_code
        assert message in made.stderr and ".venv-xla" in made.stderr
