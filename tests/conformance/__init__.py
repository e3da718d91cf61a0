"""The contract of docs/protocol.md, played against any running server, ours or another's.

Nothing here knows the server's inside: it is asked over sockets, as a page or an SDK would ask. So
nothing is imported from the gateway, and a server in another language is judged by the same words.
"""
