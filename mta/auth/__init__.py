"""Who may bear which name: the kinds of `auth:`."""
