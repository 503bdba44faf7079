"""Statistics and examples of every feature, made shard by shard and merged in shard order.

Pass 1 (`summarize`, `Summary.merge`) is mergeable: counts, central moments, a fixed log-spaced histogram, token counts,
top examples, and a bottom-m hash sample of firings per range of strength. Pass 2 (`sample`) looks at a hash sample of
sequences kept whole: near-misses, negatives, co-activation, correlation.
"""
