"""What every process of the program needs: progress for people, polite stops, stopwatches."""
