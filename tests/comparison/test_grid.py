"""Run files with a grid: which points they name, and what is said of those that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from graft.comparison.grid import LIMIT, load_study, parse_study
from graft.errors import ConfigError
from graft.training.runfile import parse_run_config

LORA = {"method": "lora", "r": 2}


def raw(**sections) -> dict:
    """A run file of two adapters."""
    return {
        "base_model": "base",
        "task_type": "CAUSAL_LM",
        "adapters": {"low": dict(LORA), "scaled": {"method": "ia3", "learning_rate": 0.5}},
        "data": {"train": "rows.jsonl", "eval_fraction": 0.1},
        "train": {"output_dir": "out", "seed": 7, "max_steps": 3},
        **sections,
    }


def names(study) -> list[str]:
    return [planned.point.name for planned in study.points]


def test_adapters_are_points():
    study = parse_study(raw())
    assert names(study) == ["low", "scaled"]
    assert [planned.point.method for planned in study.points] == ["lora", "ia3"]
    assert study.seeds == (7,)
    low = study.points[0].with_seed(7)
    assert low.train.output_dir == str(Path("out", "low", "seed-7"))
    assert list(low.adapters) == ["low"]
    assert low.train.max_steps == 3


def test_every_choice_is_made_with_every_other():
    grid = {"adapters.low.r": [4, 8], "train.learning_rate": [1e-4, 1e-3]}
    study = parse_study(raw(grid=grid))
    low = [p for p in study.points if p.point.adapter == "low"]
    made = {(p.config.adapter.model_extra["r"], p.config.learning_rate) for p in low}
    assert made == {(r, rate) for r in (4, 8) for rate in (1e-4, 1e-3)}
    assert low[1].point.choices == {"adapters.low.r": 4, "train.learning_rate": 1e-3}
    assert low[1].point.name == "low r=4 learning_rate=0.001"


def test_what_changes_nothing_for_an_adapter_makes_no_point():
    grid = {"adapters.low.r": [4, 8], "train.learning_rate": [1e-4, 1e-3]}
    study = parse_study(raw(grid=grid))  # `scaled` has a learning rate of its own
    assert [p.point.name for p in study.points if p.point.adapter == "scaled"] == ["scaled"]


def test_a_choice_of_one_is_a_setting():
    study = parse_study(raw(grid={"train.max_steps": [9]}))
    assert names(study) == ["low", "scaled"]
    assert {p.config.train.max_steps for p in study.points} == {9}


def test_lists_and_null_are_choices():
    grid = {"adapters.low.target_modules": [["q_proj"], None, "all-linear"]}
    study = parse_study(raw(grid=grid))
    chosen = [
        p.config.adapter.peft_config(p.config.task_type).target_modules for p in study.points[:3]
    ]
    assert chosen == [["q_proj"], None, "all-linear"]
    folders = [p.folder for p in study.points]
    assert len({folder.casefold() for folder in folders}) == len(folders)
    assert not any(set(folder) & set("/\\[]\"' ") for folder in folders)


def test_names_are_whole_paths_where_the_last_part_is_not_enough():
    data = {"adapters.low.train.logging_steps": [1, 2], "train.logging_steps": [3, 4]}
    study = parse_study(raw(grid=data))
    low = [p.point.name for p in study.points if p.point.adapter == "low"]
    assert low == ["low logging_steps=1", "low logging_steps=2"]  # its own comes first


def test_full_fine_tuning_is_a_point_of_its_own():
    grid = {"adapters.low.r": [4, 8], "train.max_steps": [5, 6]}
    study = parse_study(raw(compare={"full": True, "full_learning_rate": 0.25}, grid=grid))
    full = [p for p in study.points if p.point.method == "full"]
    assert [p.point.name for p in full] == ["full max_steps=5", "full max_steps=6"]
    own = {"method": "ia3", "learning_rate": 0.5, "train": {"max_steps": 9}}  # of an adapter alone
    first = parse_study(
        raw(compare={"full": True, "full_learning_rate": 0.25}, adapters={"a": own})
    )
    for planned in (*full, first.points[1]):
        assert planned.config.resolved(bf16=False).train.learning_rate == 0.25
    assert first.points[1].config.train.max_steps == 3


def test_the_rows_held_out_are_those_of_the_first_seed():
    study = parse_study(raw(compare={"seeds": 3}))
    assert study.seeds == (7, 8, 9)
    for planned in study.points:
        runs = [planned.with_seed(seed) for seed in study.seeds]
        assert {run.data.split_seed(run.train.seed) for run in runs} == {7}
        assert len({run.train.output_dir for run in runs}) == 3


def test_the_command_line_changes_all_three_sections(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(raw(grid={"adapters.low.r": [4, 8]})))
    words = ["seeds=2", "compare.samples=1", "grid.adapters.low.r=[16]", "max_steps=8"]
    study = load_study(file, words)
    assert (study.settings.seeds, study.settings.samples) == (2, 1)
    assert study.grid == {"adapters.low.r": [16]}
    assert study.run.train.max_steps == 8
    whole = load_study(file, ["grid={adapters.low.r: [1, 2, 3]}", "compare={seeds: 4}"])
    assert whole.grid == {"adapters.low.r": [1, 2, 3]}
    assert whole.settings.seeds == 4


def test_a_study_can_be_written_and_read_again(tmp_path):
    given = raw(grid={"adapters.low.r": [4, 8]}, compare={"seeds": 2, "full": True})
    study = parse_study(given)
    file = tmp_path / "run.yaml"
    file.write_text(study.dump())
    again = load_study(file)
    assert again.points == study.points
    assert (again.grid, again.settings) == (study.grid, study.settings)


def test_without_a_grid_it_is_the_run():
    given = raw()
    run = parse_run_config({**given, "adapters": {"low": LORA}})
    (planned,) = parse_study({**given, "adapters": {"low": LORA}}).points
    alone = planned.config
    assert alone.adapters == run.adapters
    assert alone.data == run.data.model_copy(update={"eval_seed": 7})


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"grid": {"adapters.low.rnk": [1, 2]}}, "no setting `adapters.low.rnk`"),
        ({"grid": {"adapters.lwo.r": [1]}}, "no adapter 'lwo'. Did you mean low?"),
        ({"grid": {"train.learning_rte": [1]}}, "learning_rate"),
        ({"grid": {"r": [1, 2]}}, "adapters.low.r"),
        ({"grid": {"adapters.low.r": 4}}, "expected a list of values, such as [4]"),
        ({"grid": {"adapters.low.r": []}}, "expected a list of values"),
        ({"grid": {"adapters.low.r": [4, 4]}}, "names a value twice"),
        ({"grid": {"adapters.low.r": [4, "many"]}}, "whole number"),
        ({"grid": ["adapters.low.r"]}, "`grid` cannot be"),
        ({"grid": {"train.seed": [1, 2]}}, "seeds: 3"),
        ({"grid": {"base_model": ["a", "b"]}}, "one base model"),
        ({"grid": {"train.bf16": [True, False]}}, "one precision"),
        ({"grid": {"compare.seeds": [1, 2]}}, "about all points"),
        ({"compare": {"sedes": 3}}, "no setting `compare.sedes`. Did you mean seeds?"),
        ({"compare": {"seed": 3}}, "no setting `compare.seed`. Did you mean seeds?"),
        ({"compare": {"max_length": 3}}, "it belongs at `data.max_length`"),
        ({"adapters": {"low": {**LORA, "train": {"seed": 3}}}}, "`adapters.low.train.seed` cannot"),
        ({"adapters": {"low": {**LORA, "data": {"eval_fraction": 0.2}}}}, "on the same rows"),
        ({"compare": {"full_learning_rate": 1e38}}, "expected 1e+30 or less"),
        ({"compare": {"seeds": 0}}, "`compare.seeds` cannot be 0: expected 1 or more"),
        ({"compare": {"seeds": 0, "sampels": 1}}, "samples"),
        ({"compare": {"metric": "bleu"}}, "`compare.metric` cannot be 'bleu'"),
        ({"compare": 3}, "`compare` cannot be 3"),
        ({"data": {"train": "rows.jsonl"}}, "needs rows that no point learns from"),
        ({"compare": {"full": True}, "adapters": {"full": LORA}}, "give it another name"),
        ({"adapters": {"low": {"method": "lroa"}}}, "Did you mean lora?"),
    ],
)
def test_what_the_user_can_mend(sections, said):
    with pytest.raises(ConfigError) as caught:
        parse_study(raw(**sections))
    assert said in str(caught.value)


def test_an_adapter_with_rows_of_its_own_may_hold_some_out():
    own = {"train": "other.jsonl", "eval_fraction": 0.2}
    study = parse_study(raw(adapters={"low": {**LORA, "data": own}}))
    assert study.points[0].config.data.eval_fraction == 0.2


def test_many_runs_are_asked_for():
    grid = {"adapters.low.r": list(range(1, 101)), "adapters.low.lora_alpha": list(range(1, 101))}
    with pytest.raises(ConfigError, match=r"10,001 points.*--yes"):
        parse_study(raw(grid=grid))
    fifty = {"adapters.low.r": list(range(1, 50))}
    assert len(parse_study(raw(grid=fifty)).points) == 50
    with pytest.raises(ConfigError, match="3 seeds each: 150 runs"):
        parse_study(raw(grid=fifty, compare={"seeds": 3}))
    assert len(parse_study(raw(grid=fifty, compare={"seeds": 3}), limit=None).points) == 50
    assert LIMIT == 100
