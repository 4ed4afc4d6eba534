"""Tasks of lm-eval on our own decoder."""
