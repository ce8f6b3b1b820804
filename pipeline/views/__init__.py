"""Views of samples: parameters as a pure function of (recipe, seed, key, view), rendering, and probes that check it."""
