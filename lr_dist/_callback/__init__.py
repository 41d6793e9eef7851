"""The parts of `LayerwiseLR`, one idea a file; the callback's hooks call them."""
