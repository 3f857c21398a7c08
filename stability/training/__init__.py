"""The decoder, its optimiser, and the one loop that trains a stack of trials."""
