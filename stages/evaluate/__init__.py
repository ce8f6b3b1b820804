"""Evaluate: linear probes and k-NN of students and teachers through the same code."""
