"""Train an adapter: run file -> `RunConfig` -> the loop -> adapter folder.

`config` and `runfile` say what to do; `run.train` does all of it, `loop.fit` trains on a base model
that is loaded already, with `batches`, `optimizer`, `evaluate`, `state` and `report` beside it.
Only `config` and `runfile` are light; import the others where they are used.
"""
