"""What a run will need: memory, time, layouts, saves. Recipe and JSON are resolved here together."""
