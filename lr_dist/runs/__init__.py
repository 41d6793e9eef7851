"""What every long command shares: the machine it runs on, and what is chosen for that machine."""
