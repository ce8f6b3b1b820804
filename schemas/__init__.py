"""The typed documents: configuration and everything that is written to disk."""
