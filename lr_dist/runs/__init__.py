"""Shared by all long commands: the machine, its precision, writing files, hiding secrets."""
