"""Neural data in the public T15 layout: read, check, write, make up, place, cache, batch and augment."""
