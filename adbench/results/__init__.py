"""Results on disk: the record, its provenance and the run folder."""
