"""What is told of a replica to those who watch it."""
