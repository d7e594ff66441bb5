"""One module for each provider's layout."""
