"""What several methods share: parameters, networks, image operations, noise, schedules."""
