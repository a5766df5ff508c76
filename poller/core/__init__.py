"""What decides, and does no I/O: errors, events, windows, reading, delivery, gaps, mapping. Values go in, values come out."""
