"""What a run will cost before it starts: bytes and seconds of its steps.

graft's own training step is run on fake tensors, which hold no memory; what it would have held is
counted. What fits, and what would, is told from that.
"""
