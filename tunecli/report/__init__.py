"""A study explained. `summary` is pure, `tables` draws it with rich, `formats` writes it for programs."""
