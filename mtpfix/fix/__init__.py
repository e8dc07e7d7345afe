"""From findings to repairs. Today it offers them; it writes nothing."""
