"""What students are fed with: rows, images, targets, batches."""
