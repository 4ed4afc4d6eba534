"""Evaluation tasks of our own. The YAML files, which lm-eval reads, say what is asked and how it is scored."""
