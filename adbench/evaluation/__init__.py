"""Numbers without training: from finished runs, or from anyone's maps."""
