"""On a GPU each kernel gives what float64 gives, at the shapes of real models."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from tests.gpu import kernel_checks as checks

pytestmark = pytest.mark.gpu
# Every new shape is compiled first.
some = settings(max_examples=25, deadline=None)


@some
@given(case=checks.attention_cases(checks.LARGE))
def test_paged_attention_equals_float64(case: checks.AttentionCase) -> None:
    checks.check_attention(case, "cuda")


@some
@given(case=checks.attention_cases(checks.LARGE))
def test_results_of_several_ranks_combine_exactly(case: checks.AttentionCase) -> None:
    checks.check_combining_ranks(case, "cuda")


@some
@given(case=checks.scan_cases(checks.LARGE))
def test_a_mamba_window_equals_float64(case: checks.ScanCase) -> None:
    checks.check_scan(case, "cuda")


@some
@given(case=checks.scan_cases(checks.LARGE))
def test_windows_of_any_width_leave_the_same_state(case: checks.ScanCase) -> None:
    checks.check_scan_does_not_depend_on_windows(case, "cuda")


@some
@given(case=checks.experts_cases(checks.LARGE))
def test_latent_experts_equal_float64(case: checks.ExpertsCase) -> None:
    checks.check_experts(case, "cuda")
