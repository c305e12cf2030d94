"""Training and evaluation beside each other: leakage, labels, several sources."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedTokenizerBase

from graft.config import TaskType
from graft.data.check import Origin
from graft.data.config import DataConfig
from graft.data.prepare import prepare_data

from .cases import Rows, check, finding, rows_of

Write = Callable[..., str]
TRAIN = [{"prompt": f"the cat {n}", "completion": f" sat {n}"} for n in range(30)]
EVAL = [{"prompt": f"a dog {n}", "completion": f" sat {n}"} for n in range(40)]


@pytest.mark.parametrize(
    ("leaked", "count", "same", "severity"),
    [
        ([], 0, 0, None),
        (TRAIN[4:5], 1, 1, "remark"),  # 1 of 40
        (TRAIN[4:6], 2, 2, "spoils"),  # 5 %
        ([{"prompt": "the cat 7", "completion": " other"}] * 2, 2, 0, "spoils"),
        ([*TRAIN[4:6], {"prompt": "the cat 7", "completion": " other"}], 3, 2, "spoils"),
    ],
)
def test_leakage(
    leaked: Rows,
    count: int,
    same: int,
    severity: str | None,
    byte_level: PreTrainedTokenizerBase,
    jsonl: Write,
) -> None:
    held = EVAL[: 40 - len(leaked)] + leaked
    report = check(byte_level, jsonl(TRAIN, "a.jsonl"), eval=jsonl(held, "b.jsonl"))
    found = finding(report, "leakage")
    assert report.eval is not None
    assert (report.train.rows, report.eval.rows) == (30, 40)
    if severity is None:
        assert report.findings == ()
        return
    assert found is not None
    assert (found.count, found.share, found.severity) == (count, count / 40, severity)
    assert rows_of(found) == list(range(41 - len(leaked), 41))
    assert all("b.jsonl:" in place for place in found.where)
    prompts = [row["prompt"] for row in TRAIN]
    assert [place.rpartition("/")[2] for place in found.like] == [
        f"a.jsonl:{prompts.index(row['prompt']) + 1}" for row in leaked
    ]
    assert (f"{same} of them with the same answer" in found.what) == bool(same)
    assert report.spoiled == (severity == "spoils")


def test_leakage_through_the_split(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    """Counted by hand from the rows that the run would have."""
    rows = [{"prompt": f"the cat {n % 20}", "completion": f" sat {n % 40}"} for n in range(60)]
    path = jsonl(rows)
    for seed in (1, 2):
        report = check(byte_level, path, eval_fraction=0.25, seed=seed)
        config = DataConfig(train=path, eval_fraction=0.25)
        data = prepare_data(config, byte_level, TaskType.CAUSAL_LM, seed=seed)
        assert data.eval is not None

        def prompt(row: dict) -> tuple[int, ...]:
            pairs = zip(row["input_ids"], row["labels"], strict=True)
            return tuple(token for token, label in pairs if label == -100)

        trained = {prompt(row) for row in data.train}
        wanted = sum(prompt(row) in trained for row in data.eval)
        found = finding(report, "leakage")
        assert found is not None
        assert found.count == wanted
        assert found.share == wanted / len(data.eval)
        rows_held = {byte_level.decode(row["input_ids"]) for row in data.eval}
        for number in rows_of(found):
            row = rows[number - 1]
            assert row["prompt"] + row["completion"] + "</s>" in rows_held
    lonely = check(byte_level, jsonl(TRAIN), eval_fraction=0.25)
    assert finding(lonely, "leakage") is None


def test_conversations_that_begin_alike_are_not_the_same(
    chatml: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    def chat(*said: str) -> dict:
        roles = ["user", "assistant"] * 2
        pairs = zip(roles, said, strict=True)
        return {"messages": [{"role": role, "content": text} for role, text in pairs]}

    train, held = chat("Hi", "Hello", "ask 1", "say 1"), chat("Hi", "Hello", "ask 2", "say 2")
    report = check(chatml, jsonl([train], "a.jsonl"), eval=jsonl([held], "b.jsonl"))
    assert report.findings == ()
    again = chat("Hi", "Hey", "ask 1", "say 2")
    report = check(chatml, jsonl([train], "a.jsonl"), eval=jsonl([again], "b.jsonl"))
    assert finding(report, "leakage") is not None


def test_everything_learned_has_no_prompt(
    byte_level: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    train, held = jsonl(TRAIN, "a.jsonl"), jsonl([*TRAIN[:1], *EVAL[:3]], "b.jsonl")
    report = check(byte_level, train, eval=held, train_on="all")
    found = finding(report, "leakage")
    assert found is not None
    assert rows_of(found) == [1]


def test_several_sources_are_told_apart(byte_level: PreTrainedTokenizerBase, jsonl: Write) -> None:
    a, b = jsonl(TRAIN[:3], "a.jsonl"), jsonl([EVAL[0], TRAIN[1]], "b.jsonl")
    report = check(byte_level, [a, b])
    found = finding(report, "duplicates")
    assert found is not None
    assert (found.where, found.like) == ((f"{b}:2",), (f"{a}:2",))
    assert report.origins == (Origin(a, 3, held=False), Origin(b, 2, held=False))
    report = check(byte_level, a, eval=b)
    assert report.origins == (Origin(a, 3, held=False), Origin(b, 2, held=True))


def test_the_run_that_follows_tokenises_nothing(
    byte_level: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    """Also where the evaluation's own columns would tell another format than training's."""
    held = [{**row, "instruction": "a", "output": "b"} for row in EVAL]
    train, eval_ = jsonl(TRAIN, "a.jsonl"), jsonl(held, "b.jsonl")
    check(byte_level, train, eval=eval_)
    told: list[str] = []
    config = DataConfig(train=train, eval=eval_)
    prepare_data(config, byte_level, TaskType.CAUSAL_LM, seed=0, tell=told.append)
    assert len(told) == 2
    assert all("cache" in line for line in told)


CLASSES = [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(["cat", "dog"] * 10)]


def test_labels_that_only_the_evaluation_has(
    wordpiece: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    train = jsonl(CLASSES, "a.jsonl")
    held = jsonl([{"text": "mat", "label": "a"}, {"text": "red", "label": "c"}], "b.jsonl")
    report = check(wordpiece, train, TaskType.SEQ_CLS, eval=held)
    found = finding(report, "labels-only-in-eval")
    assert found is not None
    assert (found.severity, found.count, rows_of(found)) == ("spoils", 1, [2])
    assert "c (1)" in found.what
    held = jsonl([{"text": "mat", "label": "b"}], "b.jsonl")
    report = check(wordpiece, train, TaskType.SEQ_CLS, eval=held)
    assert finding(report, "labels-only-in-eval") is None


def test_tags_that_only_the_evaluation_has(
    wordpiece: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    train = jsonl([{"tokens": ["cat", "dog"], "tags": ["O", "B"]}], "a.jsonl")
    held = jsonl(
        [{"tokens": ["mat"], "tags": ["B"]}, {"tokens": ["red"], "tags": ["X"]}], "b.jsonl"
    )
    report = check(wordpiece, train, TaskType.TOKEN_CLS, eval=held)
    found = finding(report, "labels-only-in-eval")
    assert found is not None
    assert rows_of(found) == [2]


def test_one_label(wordpiece: PreTrainedTokenizerBase, jsonl: Write) -> None:
    rows = [{"text": row["text"], "label": "a"} for row in CLASSES]
    found = finding(check(wordpiece, jsonl(rows), TaskType.SEQ_CLS), "one-label")
    assert found is not None
    assert found.severity == "spoils"
    assert finding(check(wordpiece, jsonl(CLASSES), TaskType.SEQ_CLS), "one-label") is None


@pytest.mark.parametrize(("minor", "found"), [(10, False), (2, True), (1, True)])
def test_a_label_that_rules(
    minor: int, found: bool, wordpiece: PreTrainedTokenizerBase, jsonl: Write
) -> None:
    rows = [{"text": "cat", "label": "ba"[n < minor]} for n in range(20)]
    report = check(wordpiece, jsonl(rows), TaskType.SEQ_CLS)
    assert (finding(report, "one-label-rules") is not None) == found


def test_a_label_that_is_rare(wordpiece: PreTrainedTokenizerBase, jsonl: Write) -> None:
    rows = [{"text": "cat", "label": "ab"[n % 2]} for n in range(200)]
    report = check(wordpiece, jsonl([*rows, {"text": "dog", "label": "c"}]), TaskType.SEQ_CLS)
    found = finding(report, "rare-labels")
    assert found is not None
    assert (found.count, found.severity, rows_of(found)) == (1, "remark", [201])
    report = check(wordpiece, jsonl(rows), TaskType.SEQ_CLS)
    assert finding(report, "rare-labels") is None
