"""Clusters: what they are described by, and what their schedulers are asked."""
