"""Names given on a command line."""

from absl import app


def check_names(flag, names, known):
    """Raises unless all names given for a flag are known ones."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise app.UsageError(
            f"--{flag} must be of {', '.join(known)}; received {', '.join(unknown)}."
        )
