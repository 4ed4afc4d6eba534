"""What a model is trained on. Import the modules directly; this package imports nothing heavy."""
