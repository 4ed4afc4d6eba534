"""What a model says of texts that are there: losses, pseudo-perplexity, word perplexity."""
