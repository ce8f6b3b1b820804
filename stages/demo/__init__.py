"""The demo: real digits, two real ImageNet teachers, a small student, on any laptop."""
