"""Data sources: each yields a `DataSet`."""
