"""The racers of `benchmarks/train.py`, one process each, and what the race needs. Our own training is one of them."""
