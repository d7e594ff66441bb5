"""Records into ranked tables. Imports nothing heavy: anyone can read a leaderboard."""
