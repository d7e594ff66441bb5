"""Evaluation without training: of finished runs, or of anyone's maps."""
