"""One HTTP request at a time, bounded, and the connections below it. Holds no rules of an API."""
