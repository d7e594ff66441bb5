"""From what the user wrote to resolved cells: run configuration, grid file, registry, protocols."""
