"""The daemon and what it says of itself: schedule, readiness, health, metrics, notices to systemd."""
