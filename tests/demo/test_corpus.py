"""The demo's text is a function of its seed, and its splits share no order."""

import re

from graft.demo import heldout_rows, train_rows
from graft.demo.corpus import (
    CITIES,
    COLOURS,
    DAYS,
    FIELDS,
    ITEMS,
    NAMES,
    NUMBERS,
    TASK_STYLE,
    Order,
    pretraining_text,
    task_items,
)


def parse_record(completion: str) -> dict[str, str]:
    """The fields of a record in the task's style."""
    return dict(part.split(" = ") for part in completion.strip().split("; "))


def order_in(sentence: str) -> Order:
    """The order that a note tells, found by its words alone."""
    words = re.findall(r"\w+", sentence)

    def only(known):
        return next(word for word in words if word in known)

    counts = {str(n): n for n in range(2, 13)} | {word: n for n, word in enumerate(NUMBERS, 2)}
    return Order(
        name=only(NAMES),
        city=only(CITIES),
        item=only({f"{item}s" for item in ITEMS})[:-1],
        colour=only(COLOURS),
        count=counts[only(counts)],
        day=only(DAYS),
    )


def notes_in(rows: list[dict[str, str]]) -> set[Order]:
    return {order_in(row["prompt"].splitlines()[0]) for row in rows}


def test_text_and_task_are_functions_of_the_seed():
    assert pretraining_text(3, 50) == pretraining_text(3, 50)
    assert pretraining_text(3, 50) != pretraining_text(4, 50)
    assert pretraining_text(3, 50) == pretraining_text(3, 80)[:50]
    assert task_items(3, 20, "train") == task_items(3, 20, "train")
    assert task_items(3, 20, "train") != task_items(4, 20, "train")


def test_words_of_different_fields_never_coincide():
    groups = [NAMES, CITIES, ITEMS, COLOURS, DAYS, NUMBERS]
    words = [word for group in groups for word in group]
    assert len(words) == len(set(words))


def test_a_record_says_what_the_note_says():
    for row in task_items(1, 200, "train"):
        note, prompt = row["prompt"].splitlines()
        order, record = order_in(note), parse_record(row["completion"])
        assert prompt == "Record:"
        assert tuple(record) == FIELDS
        assert record == {
            "name": order.name,
            "city": order.city,
            "item": order.item,
            "colour": order.colour,
            "count": str(order.count),
            "day": order.day[:3],
        }


def test_training_and_heldout_rows_share_no_order():
    train, heldout = notes_in(train_rows()), notes_in(heldout_rows())
    assert len(train) == len(train_rows())
    assert len(heldout) == len(heldout_rows())
    assert not train & heldout
    assert {order.split for order in train} == {"train"}
    assert {order.split for order in heldout} == {"heldout"}


def test_pretraining_text_shares_no_order_with_the_task():
    lines = "\n".join(pretraining_text(0, 2000)).splitlines()
    told = [line for line in lines if line.startswith(("Note:", "Diary:"))]
    sentences = [sentence for line in told for sentence in line.split(". ")]
    orders = {order_in(text) for text in sentences if any(day in text for day in DAYS)}
    assert len(orders) > 2000
    assert {order.split for order in orders} == {"pretrain"}


def test_pretraining_text_never_uses_the_task_style():
    joint = re.compile(
        rf"{re.escape(TASK_STYLE.assignment)}\w+{re.escape(TASK_STYLE.separator)}\w+"
    )
    assert joint.search(train_rows()[0]["completion"])
    assert not any(joint.search(document) for document in pretraining_text(0, 5000))
