"""The report: what an evaluation found, as one HTML file and as a table for the terminal."""
