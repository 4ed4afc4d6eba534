"""The loop: what a rank does between two steps."""
