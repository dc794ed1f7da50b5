"""What every process needs to be one: clock, settings, start and drain, health, metrics, logs. Only here is `os.environ` read."""
