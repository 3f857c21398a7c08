"""Programs that time the parts of the program and print ratios."""
