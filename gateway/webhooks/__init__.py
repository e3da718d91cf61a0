"""Webhooks: the end of a stream, told to the app's own server, whoever has left."""
