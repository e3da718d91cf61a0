"""Chat: the URLs that the AI SDK's own transport asks, in its UI message stream."""
