"""Distill: train a student with a ladder of projectors on cached teacher features."""
