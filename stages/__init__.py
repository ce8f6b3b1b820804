"""The stages. Each one reads data on disk and writes data on disk; none imports another."""
