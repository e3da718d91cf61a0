"""What the events of an upstream tell, protocol by protocol."""
