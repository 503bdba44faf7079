"""What `benchmarks/quality.py` trains, how it measures, and how it tells."""
