"""What is in the data, and what in it would spoil a run: counted before the run, not after it.

`examples` holds the tokenised rows of all sources as arrays; `tokens`, `overlap`, `labels` and
`texts` each look for a few faults; `report` is what they say. Tokenised rows come from the cache
of `encoding`, so that the run that follows need not make them again.
"""

from graft.data.check.examination import check_data
from graft.data.check.report import Finding, Origin, Report, Side

__all__ = ["Finding", "Origin", "Report", "Side", "check_data"]
