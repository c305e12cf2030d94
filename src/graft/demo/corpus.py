"""The demo's little world: text to pretrain the bundled base model on, and the demo task.

Everything is a function of a seed. The world is a mail-order shop: people in towns order coloured
things. The pretraining text tells of orders, asks and answers questions about them, and files them
as records in ever-changing styles, several orders to a document in one style, so that a model
learns to read an order, to copy from it and to keep to a style. The demo task files orders in one
fixed style, which the pretraining text never uses: the parts are known, the whole is new.

Orders are split by a hash of their content, so that pretraining text, the task's training rows and
its held-out rows share no order. Tokenisation and training are left to `pretrain.py`.
"""

import random
import zlib
from dataclasses import astuple, dataclass
from typing import Literal

Split = Literal["pretrain", "train", "heldout"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Ada Alma Amir Anna Ben Bianca Boris Carla Carlos Clara Daniel Diana Elena Elias Emma Erik "
    "Eva Felix Fiona Frida Georg Greta Hana Hugo Ida Igor Ines Ivan Jana Jonas Julia Karim Karin "
    "Lars Laura Lena Leo Lina Louis Lucia Magda Marco Maria Marta Max Mila Mina Nadia Nils Nina "
    "Nora Olga Omar Oscar Paul Petra Rosa Ruth Samir Sara Simon Sofia Tara Theo Tom Vera Victor "
    "Wanda Yusuf Zoe"
)
CITIES = _words(
    "Athens Basel Bergen Berlin Bern Bilbao Bologna Bremen Bruges Cairo Cork Delhi Dublin Florence "
    "Geneva Genoa Ghent Graz Hanoi Helsinki Kyoto Lagos Leeds Lima Linz Lisbon London Lyon Madrid "
    "Malmo Milan Munich Nairobi Naples Oslo Paris Porto Prague Quito Riga Rome Seoul Siena Tallinn "
    "Tokyo Turin Vienna Warsaw York Zagreb"
)
COLOURS = _words("black blue brown golden green grey orange pink purple red white yellow")
ITEMS = _words(
    "apron bag basket bell blanket book bottle bowl bucket button candle carpet chair clock coat "
    "cup curtain desk drum fork guitar hammer hat jacket kettle ladder lamp mirror mug pan pencil "
    "pillow pipe plate pot ribbon shawl shirt spoon stool table tent towel tray vase violin"
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
NUMBERS = _words("two three four five six seven eight nine ten eleven twelve")  # from 2 on

FIELDS = ("name", "city", "item", "colour", "count", "day")
LABELS = {
    "name": ("name", "customer", "buyer"),
    "city": ("city", "town", "place"),
    "item": ("item", "product", "goods"),
    "colour": ("colour", "shade", "paint"),
    "count": ("count", "number", "quantity"),
    "day": ("day", "date", "when"),
}
# A value always follows a space, so that a word is the same token in a note and in a record.
ASSIGNMENTS = (" = ", ": ", " is ", " - ", " -> ")
SEPARATORS = ("; ", ", ", " | ", " / ", ". ")

NOTES = (
    "{name} from {city} ordered {count} {colour} {items} on {day}.",
    "On {day}, {name} from {city} ordered {count} {colour} {items}.",
    "On {day} {count} {colour} {items} were sent to {name} in {city}.",
    "Please send {count} {colour} {items} to {name} in {city} by {day}.",
    "{name} would like {count} {colour} {items}, sent to {city} on {day}.",
    "We need {count} {items} in {colour} by {day}, for {name} in {city}.",
    "A letter from {city}: {name} asks for {count} {colour} {items} by {day}.",
)
QUESTIONS = {
    "name": ("Who is the order for?", "Who wrote?", "What is the name?"),
    "city": ("Where does it go?", "Which city is it?", "What is the town?"),
    "item": ("What was ordered?", "Which product is it?", "What is the item?"),
    "colour": ("Which colour is it?", "What is the shade?"),
    "count": ("How many are they?", "What is the count?", "What is the number?"),
    "day": ("When is it?", "Which day is it?", "What is the date?"),
}


@dataclass(frozen=True)
class Order:
    """One order: who, where, what, in which colour, how many (2 to 12) and when."""

    name: str
    city: str
    item: str
    colour: str
    count: int
    day: str

    @property
    def split(self) -> Split:
        """The part of the data this order belongs to, by a hash of its content."""
        bucket = zlib.crc32("|".join(map(str, astuple(self))).encode()) % 10
        return "pretrain" if bucket < 6 else "train" if bucket < 9 else "heldout"


@dataclass(frozen=True)
class Style:
    """How an order is written as a record: `labels` holds (field, its label) in writing order."""

    labels: tuple[tuple[str, str], ...]
    assignment: str
    separator: str
    short_days: bool
    digits: bool

    def write(self, order: Order) -> str:
        """The record of `order` in this style, without the space that follows a prompt."""
        values = order_values(order, short_days=self.short_days, digits=self.digits)
        return self.separator.join(
            f"{label}{self.assignment}{values[field]}" for field, label in self.labels
        )


TASK_STYLE = Style(
    labels=tuple((field, field) for field in FIELDS),
    assignment=" = ",
    separator="; ",
    short_days=True,
    digits=True,
)


def order_values(order: Order, *, short_days: bool, digits: bool) -> dict[str, str]:
    """The values of an order's fields as they are written in records and answers."""
    return {
        "name": order.name,
        "city": order.city,
        "item": order.item,
        "colour": order.colour,
        "count": str(order.count) if digits else NUMBERS[order.count - 2],
        "day": order.day[:3] if short_days else order.day,
    }


def draw_order(rng: random.Random, split: Split) -> Order:
    """A random order of the given split."""
    while True:
        order = Order(
            name=rng.choice(NAMES),
            city=rng.choice(CITIES),
            item=rng.choice(ITEMS),
            colour=rng.choice(COLOURS),
            count=rng.randint(2, 12),
            day=rng.choice(DAYS),
        )
        if order.split == split:
            return order


def draw_style(rng: random.Random) -> Style:
    """A random record style that does not join assignment and separator as the task does."""
    fields = rng.sample(FIELDS, rng.choice((2, 3, 4, 5, 6, 6, 6)))
    while True:
        style = Style(
            labels=tuple((field, rng.choice(LABELS[field])) for field in fields),
            assignment=rng.choice(ASSIGNMENTS),
            separator=rng.choice(SEPARATORS),
            short_days=rng.random() < 0.5,
            digits=rng.random() < 0.5,
        )
        if (style.assignment, style.separator) != (TASK_STYLE.assignment, TASK_STYLE.separator):
            return style


def write_note(rng: random.Random, order: Order) -> str:
    """One English sentence that tells all of an order; counts as digits or as words."""
    values = order_values(order, short_days=False, digits=rng.random() < 0.5)
    return rng.choice(NOTES).format(**values, items=f"{order.item}s")


def records_document(rng: random.Random) -> str:
    """Up to four orders, each with its record, all records in the same style."""
    style = draw_style(rng)
    pairs = []
    for _ in range(rng.randint(1, 4)):
        order = draw_order(rng, "pretrain")
        pairs.append(f"Note: {write_note(rng, order)}\nRecord: {style.write(order)}")
    return "\n".join(pairs)


def questions_document(rng: random.Random) -> str:
    """One order with questions and answers about it."""
    order = draw_order(rng, "pretrain")
    lines = [f"Note: {write_note(rng, order)}"]
    answers = order_values(order, short_days=rng.random() < 0.5, digits=rng.random() < 0.5)
    for field in rng.sample(FIELDS, rng.randint(1, 6)):
        lines.append(f"Question: {rng.choice(QUESTIONS[field])}\nAnswer: {answers[field]}")
    return "\n".join(lines)


def diary_document(rng: random.Random) -> str:
    """A few orders told one after the other, and whose order went where."""
    orders = [draw_order(rng, "pretrain") for _ in range(rng.randint(1, 3))]
    told = " ".join(write_note(rng, order) for order in orders)
    asked = rng.choice(orders)
    return f"Diary: {told} The {asked.item}s for {asked.name} go to {asked.city}."


def rewriting_document(rng: random.Random) -> str:
    """A list of words and the same list again: as it is, in short, in the singular, in digits."""
    known = (*NAMES, *CITIES, *ITEMS, *COLOURS)
    title, pairs = rng.choice(
        (
            ("Same", [(word, word) for word in known]),
            ("One", [(f"{item}s", item) for item in ITEMS]),
            ("Short", [(day, day[:3]) for day in DAYS]),
            ("Digits", [(word, str(number)) for number, word in enumerate(NUMBERS, 2)]),
        )
    )
    drawn = rng.choices(pairs, k=rng.randint(3, 8))
    listed, rewritten = (", ".join(column) for column in zip(*drawn, strict=True))
    return f"List: {listed}\n{title}: {rewritten}"


def pretraining_text(seed: int, documents: int) -> list[str]:
    """The pretraining documents of a seed.

    Args:
        seed: Determines every document.
        documents: How many to write; a longer list starts with the shorter one.
    """
    rng = random.Random(f"pretrain {seed}")
    kinds = (records_document, questions_document, diary_document, rewriting_document)
    return [rng.choices(kinds, weights=(6, 2, 1, 1))[0](rng) for _ in range(documents)]


def task_items(seed: int, n: int, split: Literal["train", "heldout"]) -> list[dict[str, str]]:
    """Rows of the demo task: file an order note as a record in the task's style.

    Args:
        seed: Determines every row.
        n: Number of rows, each of another order.
        split: Which orders to take; no order of one split occurs in another.

    Returns:
        Rows with `prompt` ("Note: ...\\nRecord:") and `completion` (" name = ...; city = ...").
    """
    rng = random.Random(f"{split} {seed}")
    orders: dict[Order, None] = {}  # a dict keeps the order of drawing
    while len(orders) < n:
        orders.setdefault(draw_order(rng, split))
    return [
        {
            "prompt": f"Note: {write_note(rng, order)}\nRecord:",
            "completion": f" {TASK_STYLE.write(order)}",
        }
        for order in orders
    ]
