"""Looking inside a model that reads a text: attention, losses, logit lens; a page of them."""
