"""A run on many workers: processes, flow runs of a work pool, Ray or Dask tasks."""
