"""What several methods share: image operations, noise, schedules, and fitting one network."""
