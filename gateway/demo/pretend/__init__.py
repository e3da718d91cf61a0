"""The providers that the pretend upstream plays, one module each, and what they share."""
