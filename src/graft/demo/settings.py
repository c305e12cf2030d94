"""How the demo trains each method: found by trial on the bundled base model, as data.

The learning rates are high, as is right for a model this small. Virtual tokens at the input learn
more slowly than what acts in every layer, and get twice the steps. Rows of one step, schedule and
warm-up are the same for all methods.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from graft.errors import ConfigError, did_you_mean

SEED = 0
ROWS_PER_STEP = 16
SCHEDULE = "linear"
WARMUP_RATIO = 0.05


@dataclass(frozen=True)
class MethodSettings:
    """One method's adapter config (fields by name), its highest learning rate and its steps."""

    fields: dict[str, object]
    learning_rate: float
    steps: int = 100


# In the order of the demo's table; the keys are the methods' names in run files.
SETTINGS = {
    "prompt_tuning": MethodSettings({"num_virtual_tokens": 20}, learning_rate=1e-1, steps=200),
    "p_tuning": MethodSettings({"num_virtual_tokens": 20}, learning_rate=1e-2, steps=200),
    "prefix_tuning": MethodSettings({"num_virtual_tokens": 20}, learning_rate=1e-1),
    "lora": MethodSettings(
        {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}, learning_rate=5e-3
    ),
    "ia3": MethodSettings({}, learning_rate=1e-1),
    "bitfit": MethodSettings({}, learning_rate=3e-2),
}


def choose(methods: Iterable[str]) -> dict[str, MethodSettings]:
    """The settings of these methods, in the order given.

    Raises:
        ConfigError: A method that does not exist, with the nearest names.
    """
    names = [method.strip().lower().replace("-", "_") for method in methods]
    for name in names:
        if name not in SETTINGS:
            raise ConfigError(f"There is no method {name!r}.{did_you_mean(name, SETTINGS)}")
    return {name: SETTINGS[name] for name in names}
