"""Pictures, tables and the page of a run. Reads plain arrays and files, knows nothing of models."""
