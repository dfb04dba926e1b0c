"""Images of a hospital: found in a PACS export, read with their geometry, cut into patches for the network."""
