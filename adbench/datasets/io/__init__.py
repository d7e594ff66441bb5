"""Reading what lies on disk: NIfTI, PNG, archives, file names."""
