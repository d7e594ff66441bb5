"""What every room needs and none owns: files, hashes, seeds, locks, threads, the terminal."""
