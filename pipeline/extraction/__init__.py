"""Running frozen encoders over samples: what is missing, block by block, into the feature cache."""
