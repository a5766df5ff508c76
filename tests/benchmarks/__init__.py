"""Benchmarks: ratios against a bare loop, measured in one run. Nothing here asserts a time."""
