"""What can be checked of one published result. A check takes a submission and yields what is wrong with it."""
