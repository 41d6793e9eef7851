"""What every long command shares: the machine it runs on, what is chosen for it, and what may be shown."""
