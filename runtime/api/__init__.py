"""The wire: each module parses one protocol into turn requests, and writes answers in its shape."""
