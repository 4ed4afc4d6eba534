"""Decoding in the model's own layers, alone or over tensor ranks and pipeline stages."""
