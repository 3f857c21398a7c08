"""Read other people's logs, one format a file."""
