"""The slice store: prepared pixels, how they are made, and how they are read."""
