"""One self-contained page about one or several runs: numbers, curves, pictures, and what they were made from."""
