"""The parts of `LayerwiseLR` and the other Lightning callbacks, one idea a file."""
