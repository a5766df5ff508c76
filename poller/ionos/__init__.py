"""The vendor's APIs: the Activity Log that is read, and the Logging Service in which `setup` makes a pipeline."""
