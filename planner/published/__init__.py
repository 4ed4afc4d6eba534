"""Published measurements: the tables and how they are read."""
