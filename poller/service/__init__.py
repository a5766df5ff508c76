"""The daemon and its reports: schedule, readiness, health, metrics, notices to systemd."""
