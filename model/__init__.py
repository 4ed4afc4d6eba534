"""What is trained, and the engine around it. Import the modules directly; this package imports nothing heavy."""
