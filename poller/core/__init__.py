"""The rules of the program, without I/O: errors, events, windows, reading, delivery, gaps, mapping. Values in, values out."""
