"""``celery -A worker litefs demo``: hooks the demo into the command line."""
def register() -> None:
    """Placeholder until the demo is there."""
