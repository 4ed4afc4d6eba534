"""Where a run goes: machines and commands, nothing of models."""
