"""Shared by all long commands: the machine and the choices made for it, writing files, hiding secrets."""
