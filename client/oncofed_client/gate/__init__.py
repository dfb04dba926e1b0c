"""The gate: the process of a site that has the network and no patient's data."""
