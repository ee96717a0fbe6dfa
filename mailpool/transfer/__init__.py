"""Many tenants at once: from a CSV or JSON file into the database, and the other way round.

``files`` reads and writes the formats, ``columns`` knows what a column means, ``plan`` compares
a file with the database, ``writing`` carries a plan out, ``export`` makes rows of the database,
and ``sealing`` encrypts the secrets that travel.
"""

from mailpool.transfer.export import export_rows
from mailpool.transfer.files import Row, read, write
from mailpool.transfer.plan import Plan, make_plan
from mailpool.transfer.problems import Problem, UnusableFile
from mailpool.transfer.writing import apply

__all__ = [
    "Plan",
    "Problem",
    "Row",
    "UnusableFile",
    "apply",
    "export_rows",
    "make_plan",
    "read",
    "write",
]
