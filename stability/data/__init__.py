"""Neural data in the public T15 layout: reads, checks and writes them, makes them up, and serves augmented batches."""
