"""Where a run goes: it starts the ranks on this machine or others, and sees them through."""
