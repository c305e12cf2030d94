"""A user's files -> tokenised rows with a loss mask -> batches.

In this order: `config` (what the user says), `sources` (files -> rows), `formats` (rows -> turns),
`template` (turns -> tokens and loss mask), `prepare` (the whole path), `collate` (rows -> batch).
Only `config` is light; import the others where they are used.
"""
