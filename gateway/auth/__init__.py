"""Who is calling, and what a ticket is worth."""
