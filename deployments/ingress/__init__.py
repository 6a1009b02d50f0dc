"""The door: where the wire formats begin and end."""
