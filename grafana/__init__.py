"""Source of the dashboards and alert rules beside it: `make grafana` (`python -m grafana`) writes them.

Change what is here, never the JSON and YAML: a test compares them. Knows nothing of poller/; the test holds the names.
"""
