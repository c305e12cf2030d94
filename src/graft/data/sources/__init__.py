"""Where rows come from: files, folders, hubs, names in dataset_info.json -> rows as plain dicts.

In this order: `address` (what a path says), `catalogue` (LLaMA-Factory's dataset_info.json),
`splits` (which of its files), `files` (files -> rows), `source` (the whole way). What the columns
mean is left to `formats`.
"""

from graft.data.sources.source import Source, read_source, resolve_source

__all__ = ["Source", "read_source", "resolve_source"]
