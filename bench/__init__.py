"""Benchmarks: measure against a peer in one run, print a ratio, assert nothing."""
