"""What the user asked for: the environment and options, read once."""
