"""Look at data before a run: rows as they will be trained, and what would spoil it."""
