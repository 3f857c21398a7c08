"""A trial's life, from its start or its last checkpoint to its verdict."""
