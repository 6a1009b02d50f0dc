"""The services: ingress, gateway, router, engine server and the command line."""
