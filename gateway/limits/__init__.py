"""What may be held, by one subject and in all."""
