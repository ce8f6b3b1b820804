"""What bench and plan measure of a student."""
