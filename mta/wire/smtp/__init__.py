"""SMTP and LMTP: grammar, replies, the server machine and the client machine."""
