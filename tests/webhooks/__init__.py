"""What an app's own server is told of the ends of streams."""
