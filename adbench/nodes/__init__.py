"""What runs on the nodes of a cluster for the executor that is elsewhere."""
