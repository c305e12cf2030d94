from __future__ import annotations

import pytest

from graft.errors import ConfigError
from graft.planning.formulas import BASES, find_base, full_fine_tuning, parse_count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1.3B", 1_300_000_000),
        ("1.3b", 1_300_000_000),
        ("350M", 350_000_000),
        ("0.5 B", 500_000_000),
        ("1_300_000_000", 1_300_000_000),
        ("1,300,000", 1_300_000),
        ("12", 12),
        ("1.1T", 1_100_000_000_000),
    ],
)
def test_a_number_of_parameters_is_read_to_the_digit(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize(
    "text", ["", "many", "0", "-1B", "1.3", "1.3X", "1.0000000001B", "nan", "1,3B", "1_3B"]
)
def test_what_is_no_number_of_parameters_is_said(text):
    with pytest.raises(ConfigError, match=r"1\.3B"):
        parse_count(text)


@pytest.mark.parametrize("base", BASES[:2])
def test_full_fine_tuning_is_eight_bytes_of_states_a_parameter_in_fp32_and_half_in_bf16(base):
    parameters = 1_300_000_000
    found = full_fine_tuning(parameters, base)
    size = {"fp32": 4, "bf16": 2}[base.name]
    assert found.weights == found.gradients == size * parameters
    assert found.optimizer == 2 * size * parameters
    assert found.together == found.weights + found.gradients + found.optimizer


@pytest.mark.parametrize("base", BASES[2:])
def test_quantised_weights_are_not_fine_tuned(base):
    with pytest.raises(ConfigError, match=base.name):
        full_fine_tuning(10, base)


@pytest.mark.parametrize(
    ("name", "base"),
    [("float32", 0), ("FP32", 0), ("torch.bfloat16", 1), ("bf16", 1), ("8bit", 2), ("nf4", 3)],
)
def test_a_base_goes_by_the_names_that_people_use(name, base):
    assert find_base(name) is BASES[base]


def test_another_precision_is_refused():
    with pytest.raises(ConfigError, match="fp32, bf16, 8-bit, 4-bit"):
        find_base("fp12")
