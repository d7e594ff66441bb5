"""Packages for new methods and datasets: written from templates, whole and working before a line is changed."""
