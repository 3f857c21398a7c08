"""Neural data in the public T15 layout: read it, write it, make it up, batch it, augment it."""
