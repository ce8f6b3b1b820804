"""How what the commands find looks on a terminal: one file for each command that shows much."""
