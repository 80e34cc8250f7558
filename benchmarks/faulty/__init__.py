"""What `benchmarks/faults.py` does to files."""
