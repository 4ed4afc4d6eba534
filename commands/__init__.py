"""What one types: one thin file a command, which turns flags into one typed call and prints its result."""
