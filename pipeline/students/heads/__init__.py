"""Heads on one rung of a student, beside the ladder: what predicts a teacher's tokens in other published recipes."""
