"""The APIs of IONOS: the Activity Log, and for `setup` the Logging Service and Event Streams for Apache Kafka."""
