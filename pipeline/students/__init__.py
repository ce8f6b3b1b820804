"""A student as a network: a timm model with rungs, the ladder on them, and what leaves with it. Free of training."""
