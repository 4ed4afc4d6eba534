"""What to run. One file a model size, the vocabulary they are written in, and the jobs they share."""
