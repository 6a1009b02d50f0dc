"""The machines: topology, placement and the local stand-in cluster."""
