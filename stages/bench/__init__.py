"""The bench: what each stage takes on this machine and these data, against what its pieces allow."""
