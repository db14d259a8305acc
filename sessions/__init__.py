"""What a session is: its identity, record, binding and transcript, and the store that keeps them.

Nothing here knows a replica's load, HTTP, or an engine.
"""
