"""The ownership machine, the tenure, and the built-in cluster resources."""
