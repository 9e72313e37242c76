"""The run-time type checker the tests put on the whole package."""

from beartype import BeartypeConf, beartype

# PEP 484's numeric tower: an int is welcome where a float is annotated, as Python and pyright have it.
typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))
