"""A user's files -> tokenised rows with a loss mask -> batches.

In this order: `config` (what the user says), `sources` (files -> rows), `formats` (rows -> turns),
`template` (turns -> tokens and loss mask), `prepare` (the whole path), `collate` (rows -> batch).
Beside the path, `preview` shows rows as they will be trained, and `check` finds what spoils a run.
Only `config` is light; import the others where they are used.
"""
