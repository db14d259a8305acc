"""The engines: how each kind is spoken to, and how the embedded ones are started and watched."""
