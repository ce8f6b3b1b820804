"""The demo: real digits, a teacher with real ImageNet weights, one that knows digits, and a student of both, on any laptop."""
