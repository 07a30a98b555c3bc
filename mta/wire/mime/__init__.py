"""MIME as far as transport needs it (RFC 2045): what a content is made of, and its conversion."""
