"""What every room needs and none owns: errors, files, random streams, devices, text."""
