"""What to run. One file a model size, and the vocabulary that these files are written in."""
