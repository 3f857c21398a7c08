"""Shared by all rooms: errors, files, random streams, devices, text, colours."""
