"""Why graft has no such setting: sentences that the tables of several tools share."""

__all__ = [
    "ADAMW",
    "COUNTED",
    "EXACT_RESUME",
    "IN_MEMORY",
    "LOGGED",
    "LOSS",
    "NO_CODE",
    "NO_FP16",
    "NO_HUB",
    "NO_QUANTISATION",
    "NO_TRACKER",
    "NO_TUNER",
    "ONE_DEVICE",
    "SHUFFLED",
    "SPEED",
    "TEMPLATE",
    "WHOLE_CHECKPOINT",
]

ONE_DEVICE = "graft trains on one device, in one process."
NO_TRACKER = (
    "graft writes train_log.jsonl and loss.png into the output folder, and talks to no tracker."
)
NO_HUB = "graft uploads nothing; the output folder can be uploaded as it is."
NO_CODE = (
    "graft runs no code that comes with a model or data; models that transformers knows need none."
)
ADAMW = (
    "graft trains with AdamW in float32: of an adapter, the optimizer's state is small, and needs "
    "no 8-bit or paged form."
)
SPEED = "it is about speed or memory and changes nothing that is learned; graft has no such switch."
LOSS = "graft learns by the plain cross entropy of the answers, and has no other loss."
IN_MEMORY = "graft holds the tokenised rows in memory, so it needs no such setting"
NO_FP16 = (
    "graft holds the base model in bfloat16 or in float32: leave `train.bf16` out and the hardware "
    "decides."
)
WHOLE_CHECKPOINT = (
    "a checkpoint of graft also holds the optimizer, so that the run can resume; of an adapter it "
    "is small."
)
SHUFFLED = "graft draws the rows in a new random order each epoch."
EXACT_RESUME = "a resumed run of graft always goes on at the very row where it stopped."
LOGGED = "graft logs the loss every `train.logging_steps` and keeps its log in train_log.jsonl"
NO_QUANTISATION = (
    "graft holds the base model in bfloat16 or float32, not in 4 or 8 bits: the adapter is trained "
    "as the same LoRA, but the run needs the memory of the whole model."
)
NO_TUNER = (
    "graft trains adapters (lora, ia3, bitfit, prompt_tuning, p_tuning, prefix_tuning), never the "
    "whole model."
)
TEMPLATE = (
    "rows are rendered with the base model's own chat template; see that it is the one meant with "
    "`graft data preview`."
)
COUNTED = "it counts rows there; give a share such as `data.eval_fraction: 0.05`."
