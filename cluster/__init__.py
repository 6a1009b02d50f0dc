"""The machines: topology, placement, what a step costs on them, and the local stand-in cluster."""
