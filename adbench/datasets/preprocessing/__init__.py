"""From a volume as its provider ships it to prepared slices: one recipe, versioned, every step recorded and hashed."""
