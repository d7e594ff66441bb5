"""The slice store: prepared cases, how they are made, and what a store lists."""
