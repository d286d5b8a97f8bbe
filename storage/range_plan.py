"""Which ranges, blocks and ranged GETs a read needs. Pure."""
