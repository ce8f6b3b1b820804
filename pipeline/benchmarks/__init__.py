"""Benchmarks that have a name: where their folders are, which images each split has, and what the labels mean."""
