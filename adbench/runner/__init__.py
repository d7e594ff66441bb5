"""One cell of the grid: its keys, its plan, fitting, inference, measuring, and the record."""
