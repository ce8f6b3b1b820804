"""What is trained: student, ladder, loss."""
