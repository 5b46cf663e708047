"""What `braze_sends` costs beside other ways to do the same; ``python -m benchmarks``."""
