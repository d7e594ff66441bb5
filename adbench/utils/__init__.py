"""Shared helpers: files, hashes, seeds, locks, threads, the terminal."""
