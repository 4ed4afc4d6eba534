"""Ranks on several hosts, started by ssh."""
