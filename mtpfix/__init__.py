"""mtpfix."""
