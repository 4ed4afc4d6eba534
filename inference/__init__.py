"""What a trained model is used for: evaluation, generation, export, import."""
