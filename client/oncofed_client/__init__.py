"""One hospital: read, check, preprocess, train, refuse. Imports `oncofed_shared` only."""
