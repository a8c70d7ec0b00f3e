"""What a flow run is called."""

from prefect.runtime import flow_run

from ..tasks.naming import short_name


def run_name() -> str:
    """Name the current flow run by its dataset and output: `capsbench.json to qa`."""
    given = flow_run.parameters
    name = f"{short_name(given['dataset'])} to {short_name(given['output'])}"
    return f"{name}, first {given['limit']}" if given.get("limit") else name
