"""Names given on a command line."""

from absl import app


def check_names(flag, names, known):
    """Raises a `UsageError` if a flag has an unknown name."""
    unknown = [name for name in names if name not in known]
    if unknown:
        raise app.UsageError(
            f"--{flag} must name some of {', '.join(known)}; received "
            f"{', '.join(unknown)}."
        )
