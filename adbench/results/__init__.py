"""What a run leaves behind: the record, its provenance and the folder they live in."""
