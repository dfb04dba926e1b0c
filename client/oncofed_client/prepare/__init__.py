"""From a hospital's raw files to tables of features: what every reader of raw files gives, and what is made of it."""
