"""Source of the dashboards and alert rules in this folder: `make grafana` (`python -m grafana`) writes them.

Change the source, never the JSON and YAML: a test compares them. It imports nothing of poller/; a test checks the names.
"""
