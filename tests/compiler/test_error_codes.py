"""The compiler's error codes in HLO that torch_xla's CPU device does not lower; lowered graphs: test_lowering.py."""

import inspect
import re

import pytest
from micro_models import ROOT

from compile.preflight import error_codes
from compile.preflight.error_codes import Rejections, rejections
from compile.preflight.hlo import parse

HEAD = """HloModule m

%add (a: s32[], b: s32[]) -> s32[] {
  %a = s32[] parameter(0)
  %b = s32[] parameter(1)
  ROOT %sum = s32[] add(%a, %b)
}

%second (a: s32[], b: s32[]) -> s32[] {
  %a = s32[] parameter(0)
  ROOT %b = s32[] parameter(1)
}

"""
X, AT = "%x = f32[4,4] parameter(0)", "%i = s32[4] parameter(1)"
K, ZERO = "%k = f32[3,3] parameter(1)", "%z = f32[] constant(0)"
ROWS = "scatter_dims_to_operand_dims={0}, index_vector_dim=1"
REJECTED: dict[str, tuple[str, ...]] = {
    "NCC_EMOD025": ("%x = f32[?,4] parameter(0)", "ROOT %n = f32[?,4] negate(%x)"),
    "NCC_ESPP004": ("%x = f4e2m1fn[4] parameter(0)", "ROOT %n = f4e2m1fn[4] negate(%x)"),
    "NCC_ESPP047": ("%x = f8e3m4[4] parameter(0)", "ROOT %n = f8e3m4[4] negate(%x)"),
    "NCC_EVRF005": ("%x = f8e5m2fnuz[4] parameter(0)", "ROOT %n = f8e5m2fnuz[4] negate(%x)"),
    "NCC_ESFH002": ("ROOT %c = u64[2] constant({1, 5000000000})",),
    "NCC_EHCA005": (X, 'ROOT %c = f32[4,4] custom-call(%x), custom_call_target="UNKNOWN"'),
    "NCC_EVRF036": (X, 'ROOT %c = (u32[4,1], u8[4,1]) custom-call(%x), custom_call_target="QuantizeMX"'),
    "NCC_EVRF006": (
        "%x = u64[2] parameter(0)",
        "ROOT %r = (u64[2], u32[4]) rng-bit-generator(%x), algorithm=rng_three_fry",
    ),
    "NCC_EVRF010": (
        X, K, "ROOT %c = f32[3,3] convolution(%x, %k), window={size=3x3 pad=2_2x2_2 lhs_dilate=2x2 rhs_dilate=2x2}",
    ),
    "NCC_EVRF011": (
        X, K, "ROOT %c = f32[3,3] convolution(%x, %k), window={size=3x3 stride=2x2 pad=2_2x2_2 lhs_dilate=2x2}",
    ),
    "NCC_EVRF013": (
        "%x = s32[4,4] parameter(0)",
        'ROOT %c = (s32[4,2], s32[4,2]) custom-call(%x), custom_call_target="AwsNeuronTopK", backend_config="2"',
    ),
    "NCC_EVRF016": (
        "%x = pred[4] parameter(0)", AT,
        "ROOT %s = pred[4] scatter(%x, %i, %x), " + ROWS + ", to_apply=%add",
    ),
    "NCC_EVRF017": (X, ZERO, "ROOT %w = f32[4,4] reduce-window(%x, %z), window={size=1x1 lhs_dilate=1x2}"),
    "NCC_EVRF018": (X, ZERO, "ROOT %w = f32[4,4] reduce-window(%x, %z), window={size=1x2 rhs_dilate=1x2}"),
    "NCC_EVRF019": (
        X, ZERO, "ROOT %w = (f32[4,4], f32[4,4]) reduce-window(%x, %x, %z, %z), window={size=1x2}",
    ),
    "NCC_EVRF031": (
        X, "%i = s32[10] iota(), iota_dimension=0", "%u = f32[10,4] broadcast(%x)",
        "ROOT %s = f32[4,4] scatter(%x, %i, %u), " + ROWS + ", to_apply=%second",
    ),
    "NCC_EVRF056": (
        X, "%i = s32[10] iota(), iota_dimension=0", "%r = s32[10,1] reshape(%i)",
        "ROOT %g = f32[10,4] gather(%x, %r), start_index_map={0}, index_vector_dim=1, slice_sizes={1,4}",
    ),
}  # fmt: skip
TOLERATED: dict[str, tuple[str, ...]] = {
    "NCC_EVRF061": ("%x = s32[4] parameter(0)", "ROOT %a = s32[4] all-reduce(%x), to_apply=%add"),
    "NCC_EVRF063": ("%x = s64[4] parameter(0)", "ROOT %a = s64[4] reduce-scatter(%x), to_apply=%add"),
}
ACCEPTED: dict[str, tuple[str, ...]] = {
    "a pooling": (X, ZERO, "ROOT %w = f32[2,2] reduce-window(%x, %z), window={size=2x2 stride=2x2}"),
    "a dilated kernel": (X, K, "ROOT %c = f32[3,3] convolution(%x, %k), window={size=3x3 stride=2x2 rhs_dilate=2x2}"),
    "a known call": (X, 'ROOT %c = f32[4,4] custom-call(%x), custom_call_target="AwsNeuronGelu"'),
    "a small u64": ("ROOT %c = u64[2] constant({1, 4294967295})",),
    "all indices": (
        X, "%i = s32[4] iota(), iota_dimension=0",
        "ROOT %g = f32[4,4] gather(%x, %i), start_index_map={0}, index_vector_dim=1, slice_sizes={1,4}",
    ),
    "indices of the caller": (
        X, AT, "ROOT %g = f32[4,4] gather(%x, %i), start_index_map={0}, index_vector_dim=1, slice_sizes={1,4}",
    ),
    "an all-reduce of floats": (X, "ROOT %a = f32[4,4] all-reduce(%x), to_apply=%add"),
}  # fmt: skip


def module(lines: tuple[str, ...]) -> str:
    return HEAD + "ENTRY %main (all: f32[]) -> (f32[]) {\n" + "".join(f"  {line}\n" for line in lines) + "}\n"


@pytest.mark.parametrize("code", REJECTED)
def test_a_graph_with_a_documented_code_is_rejected(code: str) -> None:
    found = rejections(parse(module(REJECTED[code])))
    assert len(found.errors) == 1 and found.warnings == ()
    assert found.errors[0].startswith(code)


@pytest.mark.parametrize("code", TOLERATED)
def test_a_code_that_costs_precision_is_a_warning(code: str) -> None:
    found = rejections(parse(module(TOLERATED[code])))
    assert found.errors == () and len(found.warnings) == 1
    assert found.warnings[0].startswith(code)


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_graph_without_a_code_is_accepted(name: str) -> None:
    assert rejections(parse(module(ACCEPTED[name]))) == Rejections()


def test_repeated_instructions_are_one_finding() -> None:
    found = rejections(
        parse(module(("%x = c64[4] parameter(0)", "%n = c64[4] negate(%x)", "ROOT %m = c64[4] negate(%n)")))
    )
    assert found.errors == ("NCC_EVRF004: c64, a complex number (x and 2 more)",)


def test_the_page_lists_every_code() -> None:
    """docs/compile.md names every code of a rule."""
    text = (ROOT / "docs" / "compile.md").read_text()
    for code in set(re.findall(r"NCC_(E[A-Z]{3}\d{3})", inspect.getsource(error_codes))):
        assert code in text, code
