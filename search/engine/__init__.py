"""Studies in their storage: a fixed number of trials, whatever is killed, and the processes that run them."""
